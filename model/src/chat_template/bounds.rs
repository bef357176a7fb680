//! Chat templates made to harm: each ends soon and in bounded memory.

use std::{fs, time::Instant};

use crate::{ChatMessage, ChatTemplate};

/// Measured: 10 MB and 100 ms.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
const SECONDS_MAX: u64 = 2;

/// Address space, so that memory that was reserved and never touched counts too.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// `body` many times over, with `n.x` to change.
fn repeated(start: &str, body: &str) -> String {
    let inner = "{% for i in range(10000) %}".to_owned() + body + "{% endfor %}";
    "{% set n = namespace(x=".to_owned() + start + ") %}{% for o in range(10000) %}" + &inner + "{% endfor %}"
}

/// A list that holds itself so often that it would have 2^60 items.
fn doubled_list(then: &str) -> String {
    let doubling = "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
    format!("{{% set n = namespace(x=[1]) %}}{doubling}{{% set x = n.x %}}{then}")
}

fn hostile_templates() -> Vec<String> {
    let long = "messages[0].content";
    let mut templates = vec![
        "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}".to_owned(),
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('xxxxxxxx') }}".to_owned(),
        "{{ 'x' * 99999999 }}".to_owned(),
        "{{ 'x' * 30000000 * 30000000 }}".to_owned(),
        "{{ [1] * 99999999 }}".to_owned(),
        "{{ ([0] * 100000) | map('string') | list }}".to_owned(),
        "{{ range(999999999) | list }}".to_owned(),
        "{{ range(99999999999) }}".to_owned(),
        "{{ 2 ** 99999999 }}".to_owned(),
        "{{ 'x' | center(999999999) }}".to_owned(),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{{ '{:999999999}'.format(1) }}".to_owned(),
        "{{ ('x' * 1000) | indent(99999999) }}".to_owned(),
        "{{ ('x\n' * 10000) | indent(99999) }}".to_owned(),
        "{{ lipsum(999999) }}".to_owned(),
        "{{ {'a': messages} | tojson(indent=999999999) }}".to_owned(),
        format!("{{{{ {long}.replace('x', {long}) }}}}"),
        format!("{{{{ {long} | replace('', {long}) }}}}"),
        format!("{{{{ {long}.split('') | join({long}) }}}}"),
        format!("{{{{ {long}.split('x') | join({long}) }}}}"),
        format!("{{{{ {long} | list | batch(1) | list }}}}"),
        format!("{{{{ {long} | list | slice(99999999) | list }}}}"),
        format!("{{{{ {long} | list | batch(99999999, 'x') | list }}}}"),
        format!("{{{{ {long} | urlencode | urlencode | urlencode }}}}"),
        "{% set n = namespace() %}{% set n.a = n %}{% set n.b = [n, n] %}{{ n }}{{ [n] }}".to_owned(),
        "{% set n = namespace() %}{% set n.a = n %}{{ n | tojson }}".to_owned(),
        "{% set n = namespace() %}{% set n.a = n %}{{ n | string }}{{ n | length }}".to_owned(),
        "{% set n = namespace() %}{% set n.a = n %}{{ n == namespace(a=n) }}".to_owned(),
        repeated("[1]", "{% set n.x = range(2) | map(attribute='a', default=n.x) | list %}") + "{{ n.x }}",
        repeated("[1]", "{% set n.x = n.x | batch(2, n.x) | list %}") + "{{ n.x }}",
        repeated("[1]", "{% set n.x = zip(n.x, n.x) | list %}") + "{{ n.x }}",
        repeated("[1]", "{% set n.x = dict(a=n.x, b=n.x) %}") + "{{ n.x }}",
        repeated("[1]", "{% set n.x = n.x, n.x %}") + "{{ n.x }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x, n.x %}{% endfor %}{{ n.x }}".to_owned(),
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% for y in n.x, n.x %}{% set n.x = y %}{% endfor %}{% endfor %}{{ n.x }}".to_owned(),
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = zip(n.x, n.x) | list %}{% endfor %}{{ n.x }}".to_owned(),
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = range(2) | map(attribute='a', default=n.x) | list %}{% endfor %}{{ n.x }}".to_owned(),
        repeated("'x'", "{% set n.x = n.x ~ n.x %}"),
        repeated("'x'", "{% set n.x = n.x + n.x %}"),
        repeated("'x'", "{% set n.x = n.x * 2 %}"),
        repeated("'x'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
        repeated("[1]", "{% set n.x = n.x + n.x %}"),
        repeated("[1]", "{% set n.x = n.x + [n.x] %}"),
        repeated("[1]", "{% set n.x = [n.x] %}") + "{{ n.x }}",
        repeated("{}", "{% set n.x = {'a': n.x, 'b': n.x} %}"),
        repeated("1", "{% set n.x = n.x * 10 %}"),
        repeated(long, "{{ n.x | upper }}"),
        repeated(long, "{% if 'y' in n.x %}{% endif %}"),
        repeated(long, "{% if n.x.count('xy') %}{% endif %}"),
        repeated(long, "{% set y = n.x.split('x') %}"),
        repeated(long, "{% set y = n.x[::-1] %}"),
        repeated("range(10000)", "{% set y = n.x | sort %}"),
        repeated("range(10000)", "{% if 99999 in n.x %}{% endif %}"),
        repeated("range(10000) | list", "{% if n.x == (n.x | list) %}{% endif %}"),
        repeated("range(10000) | list", "{% set y = n.x | sum %}"),
    ];
    // One that is as deep as the fuel lets it become, then used and dropped.
    let deep = "{% set n = namespace(x=[]) %}{% for o in range(2) %}{% for i in range(6000) %}{% set n.x = [n.x] %}\
        {% endfor %}{% endfor %}{% set x = n.x %}";
    for then in [
        "{{ x }}",
        "{{ x | tojson }}",
        "{{ x | tojson(indent=2) }}",
        "{{ x | string }}",
        "{{ x ~ 'a' }}",
        "{{ x == [x] }}",
        "{{ x in [x] }}",
        "{{ [x, x] | unique }}",
        "{{ [x, x] | sort }}",
        "{{ {'a': x} | items | list }}",
        "{{ x | pprint }}",
        "{{ x | urlencode }}",
        "{{ x | join }}",
        "{{ '%s' | format(x) }}",
        "{{ debug() }}",
        "{{ {x: 1} }}",
        "{{ raise_exception(x) }}",
        "{{ x.nothing.at.all }}",
    ] {
        templates.push(doubled_list(then));
        templates.push(deep.to_owned() + then);
    }
    templates
}

#[test]
fn hostile_templates_end_soon_and_in_bounded_memory() {
    let messages = [ChatMessage::new("user", "x".repeat(50_000))];
    for source in hostile_templates() {
        let shown: String = source.chars().take(300).collect();
        let (before, start) = (peak_memory_bytes(), Instant::now());
        let rendered = ChatTemplate::new(&source, "<s>", "</s>").and_then(|template| template.render(&messages, true));
        let (grown, seconds) = (peak_memory_bytes() - before, start.elapsed());
        let len = rendered.as_ref().map_or(0, String::len);
        assert!(seconds.as_secs() < SECONDS_MAX, "{seconds:?}: {shown}");
        assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes: {shown}");
        assert!(len < 10 << 20, "{len} bytes: {shown}");
    }
}
