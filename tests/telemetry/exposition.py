"""Prometheus' text format, read strictly: every line is accounted for."""

import re
from dataclasses import dataclass, field

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')
PARTS = {"_bucket", "_sum", "_count"}


@dataclass
class Family:
    """A metric: its type, its help, and its samples by name and labels."""

    kind: str
    help: str
    samples: dict = field(default_factory=dict)

    def label_names(self):
        """Of all series together, without a bucket's own."""
        return {name for _, labels in self.samples for name, _ in labels} - {"le"}

    def series(self):
        """Label sets, the buckets of one histogram being one."""
        return {tuple(pair for pair in labels if pair[0] != "le") for _, labels in self.samples}

    def bounds(self):
        """Of each series of a histogram, in order, without the last."""
        found = {}
        for name, labels in self.samples:
            if name.endswith("_bucket"):
                series = tuple(pair for pair in labels if pair[0] != "le")
                found.setdefault(series, []).append(dict(labels)["le"])
        for bounds in found.values():
            assert bounds.pop() == "+Inf"
        return {series: [float(bound) for bound in bounds] for series, bounds in found.items()}


def parse(text):
    """Families by name."""
    families, helps = {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, told = line.removeprefix("# HELP ").partition(" ")
            assert name not in helps, f"{name} is explained twice"
            helps[name] = told
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name not in families, f"{name} comes twice"
            current, family = name, Family(kind, helps.get(name, ""))
            families[name] = family
        else:
            name, labels, value = _sample(line)
            assert _belongs(name, current, family.kind), f"{line} is under the type of {current}"
            assert (name, labels) not in family.samples, f"{line} comes twice"
            family.samples[name, labels] = value
    return families


def samples(text):
    """All values by name and sorted labels."""
    return {key: value for family in parse(text).values() for key, value in family.samples.items()}


def key(name, **labels):
    return name, tuple(sorted((label, str(value)) for label, value in labels.items()))


def value(found, name, **labels):
    """0 where there is no such series yet: a histogram has none before its first event."""
    return found.get(key(name, **labels), 0)


def total(found, name, **labels):
    """Of all series that have these labels."""
    wanted = set(key(name, **labels)[1])
    return sum(number for (of, has), number in found.items() if of == name and wanted <= set(has))


def _sample(line):
    matched = SAMPLE.match(line)
    assert matched, f"no sample: {line}"
    name, labels, number = matched.groups()
    pairs = LABEL.findall(labels or "")
    assert "".join(f'{of}="{has}",' for of, has in pairs) == (f"{labels}," if labels else ""), f"labels of {line}"
    assert len({of for of, _ in pairs}) == len(pairs), f"a label twice: {line}"
    return name, tuple(sorted(pairs)), float(number)


def _belongs(name, family, kind):
    if kind == "histogram":
        return name in {family + part for part in PARTS}
    return name == family
