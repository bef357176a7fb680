//! The command line, parsed once into a `Chore`. Whatever it does not know it refuses; it starts nothing.

use anyhow::{Context, Result, bail};
use lexopt::Arg::{Long, Short, Value};
use lexopt::{Parser, ValueExt};

use crate::bench::{self, BenchOptions};
use crate::python_suite::PythonSuite;

pub const HELP: &str = "\
usage: cargo xtask CHORE [FLAGS]

  demo                            fetches the model, builds Kvasir and shows a local cluster at work
  test [--all] [--seed S] [FILTER...] [-E EXPRESSION]
                                  everything CI runs; with a filter only the tests that match it
      --all                       also the long tests (KVASIR_TEST_ALL=1)
      --seed S                    seed of the randomized tests (KVASIR_TEST_SEED)
  model [--print-only]            fetches the default model to the cache and prints its path
      --print-only                prints where it belongs, fetches nothing
  sim [--seeds N] [--seed S] [--plant NAME]
                                  runs seeded simulations of the cluster's state machines
      --seeds N                   how many seeds, counted from the first one
      --seed S                    the first seed
      --plant NAME                plants a named fault that the simulation must find
  fuzz [TARGET] [--seconds N]     runs the fuzz targets, all or one, on bytes that nobody would send
      --seconds N                 how long each target runs, 10 unless given
  clients [FILTER...]             runs other people's clients (Python, grpcurl) against a cluster of the built binary
  page [FILTER...]                looks at the live page of the built binary in a browser
  telemetry [FILTER...]           reads metrics, traces and logs of the built binary with a collector and Prometheus
  deploy [FILTER...]              holds deploy/ against helm, Kubernetes' schemas and promtool, and rolls an update out
  bench --against llama.cpp [--model FILE...] [--runs N] [--depths N,N|none] [--streams N,N|none] [--rpc] [--json FILE]
                                  measures Kvasir and llama.cpp, built here, in turn on the same file and cores
      --model FILE                a GGUF file instead of the default model; may be given several times
      --runs N                    how many rounds, 5 unless given
      --depths N,N                decode also after so many tokens of context, 4096 unless given
      --streams N,N               decode also so many answers at once, 8,32 unless given
      --rpc                       llama.cpp's RPC mode too, with a server of one thread for each core
      --json FILE                 writes all samples to a file, too
  lab                             measures and draws anew what docs/gqa.md shows
  chaos --etcd [CASE...]          coordinators, workers and three members of etcd in networks of their own: one after the other
                                  dies, sleeps, is cut off or forgets, and answers go on to the bit
  gpu [--build-only | --dry-run | --check]
                                  builds the CUDA binary without a GPU, bundles it, and checks it where a GPU is
      --build-only                builds and bundles alone
      --dry-run                   checks the bundle on this machine, its kernels on the host
      --check                     checks the types alone, without NVIDIA's compiler
  tidy                            checks the architecture rules on the sources
  codegen                         generates the Rust code of the .proto files again

environment:
  KVASIR_MODEL                    a GGUF file to use instead of the default model
  KVASIR_TEST_LIMIT_MINUTES       hard limit of the whole of `test`, 52 unless set
  XDG_CACHE_HOME                  where models and tools are kept, ~/.cache unless set
";

#[derive(Debug, PartialEq)]
pub enum Chore {
    Help,
    Model {
        print_only: bool,
    },
    Test(TestOptions),
    Codegen,
    Tidy,
    Simulation(SimulationOptions),
    Fuzz(FuzzOptions),
    /// Handed to pytest as they are.
    Python {
        suite: PythonSuite,
        filters: Vec<String>,
    },
    Bench(BenchOptions),
    Chaos(ChaosOptions),
    Gpu(GpuExtent),
    Lab,
    Demo,
}

impl Chore {
    /// Whether it compiles what needs protoc.
    pub fn builds(&self) -> bool {
        match self {
            Self::Simulation(_) | Self::Chaos(_) | Self::Gpu(_) | Self::Lab | Self::Demo => true,
            Self::Bench(options) => matches!(options, BenchOptions::Compare(_)),
            // Installs its tools itself, this one too.
            Self::Test(_) => false,
            Self::Help | Self::Model { .. } | Self::Codegen | Self::Tidy | Self::Fuzz(_) | Self::Python { .. } => false,
        }
    }
}

/// Which cases, by their names; all, if none is named.
#[derive(Debug, Default, PartialEq)]
pub struct ChaosOptions {
    pub cases: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
pub struct TestOptions {
    pub all: bool,
    pub seed: Option<u64>,
    /// Handed to nextest as they are: name filters and `-E` expressions.
    pub filters: Vec<String>,
}

#[derive(Debug, Default, PartialEq)]
pub struct SimulationOptions {
    pub num_seeds: Option<u64>,
    pub first_seed: Option<u64>,
    pub plant: Option<String>,
}

#[derive(Debug, Default, PartialEq)]
pub struct FuzzOptions {
    /// All of them, if none is named.
    pub target: Option<String>,
    pub seconds: Option<u64>,
}

/// How far the CUDA chore goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuExtent {
    /// clippy of the features, through a stand-in for the compiler.
    Types,
    /// Kernels, binary and bundle.
    Build,
    /// And the check, on the host's device.
    DryRun,
    /// And the check, if a GPU is here.
    Check,
}

pub fn parse(mut parser: Parser) -> Result<Chore> {
    let name = match parser.next()? {
        None => bail!("no chore named"),
        Some(Long("help") | Short('h')) => return Ok(Chore::Help),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    let chore = match name.as_str() {
        "help" => Chore::Help,
        "model" => parse_model(&mut parser)?,
        "test" => parse_test(&mut parser)?,
        "sim" => parse_simulation(&mut parser)?,
        "fuzz" => parse_fuzz(&mut parser)?,
        "clients" => parse_python(PythonSuite::Clients, &mut parser)?,
        "page" => parse_python(PythonSuite::Page, &mut parser)?,
        "telemetry" => parse_python(PythonSuite::Telemetry, &mut parser)?,
        "deploy" => parse_python(PythonSuite::Deploy, &mut parser)?,
        "bench" => Chore::Bench(bench::parse(&mut parser)?),
        "chaos" => parse_chaos(&mut parser)?,
        "codegen" => parse_bare(&mut parser, Chore::Codegen)?,
        "gpu" => parse_gpu(&mut parser)?,
        "tidy" => parse_bare(&mut parser, Chore::Tidy)?,
        "lab" => parse_bare(&mut parser, Chore::Lab)?,
        "demo" => parse_bare(&mut parser, Chore::Demo)?,
        _ => bail!("unknown chore '{name}'"),
    };
    Ok(chore)
}

fn parse_bare(parser: &mut Parser, chore: Chore) -> Result<Chore> {
    match parser.next()? {
        None => Ok(chore),
        Some(Long("help") | Short('h')) => Ok(Chore::Help),
        Some(other) => Err(other.unexpected().into()),
    }
}

fn parse_chaos(parser: &mut Parser) -> Result<Chore> {
    let (mut options, mut of_etcd) = (ChaosOptions::default(), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("etcd") => of_etcd = true,
            Long("help") | Short('h') => return Ok(Chore::Help),
            Value(case) => options.cases.push(case.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    match of_etcd {
        true => Ok(Chore::Chaos(options)),
        false => bail!("chaos of what? --etcd"),
    }
}

fn parse_python(suite: PythonSuite, parser: &mut Parser) -> Result<Chore> {
    let filters: Result<Vec<String>, _> = parser.raw_args()?.map(|filter| filter.into_string()).collect();
    match filters {
        Ok(filters) => Ok(Chore::Python { suite, filters }),
        Err(filter) => bail!("a filter is not text: {}", filter.display()),
    }
}

fn parse_model(parser: &mut Parser) -> Result<Chore> {
    let mut print_only = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("print-only") => print_only = true,
            Long("help") | Short('h') => return Ok(Chore::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Chore::Model { print_only })
}

fn parse_test(parser: &mut Parser) -> Result<Chore> {
    let mut options = TestOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("all") => options.all = true,
            Long("seed") => options.seed = Some(number(parser, "--seed")?),
            Short('E') => options.filters.extend(["-E".to_owned(), parser.value()?.string()?]),
            Long("help") | Short('h') => return Ok(Chore::Help),
            Value(filter) => options.filters.push(filter.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Chore::Test(options))
}

fn parse_simulation(parser: &mut Parser) -> Result<Chore> {
    let mut options = SimulationOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seeds") => options.num_seeds = Some(number(parser, "--seeds")?),
            Long("seed") => options.first_seed = Some(number(parser, "--seed")?),
            Long("plant") => options.plant = Some(parser.value()?.string()?),
            Long("help") | Short('h') => return Ok(Chore::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Chore::Simulation(options))
}

fn parse_fuzz(parser: &mut Parser) -> Result<Chore> {
    let mut options = FuzzOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seconds") => options.seconds = Some(number(parser, "--seconds")?),
            Long("help") | Short('h') => return Ok(Chore::Help),
            Value(target) if options.target.is_none() => options.target = Some(target.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Chore::Fuzz(options))
}

fn parse_gpu(parser: &mut Parser) -> Result<Chore> {
    let mut extent = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("build-only") if extent.is_none() => extent = Some(GpuExtent::Build),
            Long("dry-run") if extent.is_none() => extent = Some(GpuExtent::DryRun),
            Long("check") if extent.is_none() => extent = Some(GpuExtent::Types),
            Long("help") | Short('h') => return Ok(Chore::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Chore::Gpu(extent.unwrap_or(GpuExtent::Check)))
}

fn number(parser: &mut Parser, flag: &str) -> Result<u64> {
    parser
        .value()?
        .parse()
        .with_context(|| format!("{flag} wants a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Chore> {
        parse(Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn every_chore_in_the_help_is_understood() {
        let names = HELP
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| !line.starts_with(' '));
        let chores: Vec<&str> = names.map_while(|line| line.split(' ').next()).take(15).collect();
        assert_eq!(
            chores,
            [
                "demo",
                "test",
                "model",
                "sim",
                "fuzz",
                "clients",
                "page",
                "telemetry",
                "deploy",
                "bench",
                "lab",
                "chaos",
                "gpu",
                "tidy",
                "codegen"
            ]
        );
        for chore in chores {
            let line = if chore == "chaos" { "chaos --etcd" } else { chore };
            assert_ne!(parsed(line).unwrap(), Chore::Help, "{chore}");
        }
    }

    #[test]
    fn test_takes_switches_filters_and_expressions_in_any_order() {
        let Chore::Test(options) = parsed("test shard --seed 7 -E test(pool) --all").unwrap() else {
            panic!()
        };
        assert_eq!(
            options,
            TestOptions {
                all: true,
                seed: Some(7),
                filters: ["shard", "-E", "test(pool)"].map(String::from).to_vec()
            }
        );
    }

    #[test]
    fn sim_takes_its_numbers_and_a_plant() {
        let Chore::Simulation(options) = parsed("sim --seeds=20 --seed 3 --plant torn").unwrap() else {
            panic!()
        };
        let expected = SimulationOptions {
            num_seeds: Some(20),
            first_seed: Some(3),
            plant: Some("torn".to_owned()),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn fuzz_takes_one_target_and_its_seconds() {
        let Chore::Fuzz(options) = parsed("fuzz gguf --seconds 3").unwrap() else {
            panic!()
        };
        let expected = FuzzOptions {
            target: Some("gguf".to_owned()),
            seconds: Some(3),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn gpu_goes_as_far_as_it_is_told() {
        for (line, extent) in [
            ("gpu", GpuExtent::Check),
            ("gpu --build-only", GpuExtent::Build),
            ("gpu --dry-run", GpuExtent::DryRun),
            ("gpu --check", GpuExtent::Types),
        ] {
            assert_eq!(parsed(line).unwrap(), Chore::Gpu(extent), "{line}");
        }
    }

    #[test]
    fn what_is_not_known_is_named_in_one_line() {
        for (line, named) in [
            ("", "no chore"),
            ("tset", "'tset'"),
            ("test --seed many", "--seed"),
            ("test --sed 1", "--sed"),
            ("model there", "there"),
            ("tidy --fix", "--fix"),
            ("sim --seeds", "--seeds"),
            ("fuzz gguf proto", "proto"),
            ("fuzz --seconds long", "--seconds"),
            ("gpu --check --build-only", "--build-only"),
            ("bench --against vllm", "vllm"),
            ("chaos", "--etcd"),
        ] {
            let message = format!("{:#}", parsed(line).unwrap_err());
            assert!(
                message.contains(named) && message.lines().count() == 1,
                "{line}: {message}"
            );
        }
    }
}
