//! How many workers there are, and which groups they form.

use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::Args;

const WORKERS_MAX: u32 = 256;

#[derive(Args, Clone, Debug, Default)]
pub struct GroupOptions {
    /// Workers of all groups together; any number, also one that does not divide the model's heads [default: one a group]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: Option<u32>,
    /// Groups that each serve the whole model: how many, or the workers of each, as in 1,4 [default: 1]
    #[arg(long, value_name = "M|N,N,...")]
    groups: Option<Groups>,
}

/// `M`: so many groups, as even as can be. `N,N,...`: the ranks of each.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Groups {
    Count(u32),
    Sizes(Vec<u32>),
}

impl FromStr for Groups {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| match part.trim().parse::<u32>() {
            Ok(number) if (1..=WORKERS_MAX).contains(&number) => Ok(number),
            _ => Err(format!(
                "`{part}` is not a number from 1 to {WORKERS_MAX}; say how many groups, or the workers of each, as in 1,4"
            )),
        };
        let numbers: Vec<u32> = text.split(',').map(number).collect::<Result<_, _>>()?;
        match numbers[..] {
            [count] => Ok(Self::Count(count)),
            _ if numbers.iter().sum::<u32>() > WORKERS_MAX => Err(format!(
                "{} workers in all; at most {WORKERS_MAX} are possible",
                numbers.iter().sum::<u32>()
            )),
            _ => Ok(Self::Sizes(numbers)),
        }
    }
}

impl GroupOptions {
    /// The ranks of each group.
    pub fn sizes(&self) -> Result<Vec<u32>> {
        match (&self.groups, self.workers) {
            (None, workers) => Ok(vec![workers.unwrap_or(1)]),
            (Some(Groups::Count(count)), workers) => {
                let workers = workers.unwrap_or(*count);
                ensure!(
                    workers >= *count,
                    "{count} groups need {count} workers or more, --workers is {workers}"
                );
                Ok((0..*count)
                    .map(|index| workers / count + u32::from(index < workers % count))
                    .collect())
            }
            (Some(Groups::Sizes(sizes)), workers) => {
                let sum: u32 = sizes.iter().sum();
                ensure!(
                    workers.is_none_or(|workers| workers == sum),
                    "--groups asks for {sum} workers in all, --workers for {}",
                    workers.unwrap_or_default()
                );
                Ok(sizes.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(workers: Option<u32>, groups: Option<&str>) -> Result<Vec<u32>, String> {
        let groups = groups.map(str::parse).transpose()?;
        let options = GroupOptions { workers, groups };
        options.sizes().map_err(|error| error.to_string())
    }

    #[test]
    fn workers_are_dealt_to_groups_as_evenly_as_can_be() {
        assert_eq!(sizes(None, None), Ok(vec![1]));
        assert_eq!(sizes(Some(5), None), Ok(vec![5]));
        assert_eq!(sizes(None, Some("3")), Ok(vec![1, 1, 1]));
        assert_eq!(sizes(Some(5), Some("2")), Ok(vec![3, 2]));
        assert_eq!(sizes(None, Some("1,4")), Ok(vec![1, 4]));
        assert_eq!(sizes(Some(5), Some("1,4")), Ok(vec![1, 4]));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_numbers() {
        assert!(
            sizes(Some(2), Some("3"))
                .unwrap_err()
                .contains("3 groups need 3 workers")
        );
        assert!(sizes(Some(4), Some("1,4")).unwrap_err().contains("5 workers in all"));
        for bad in ["0", "", "1,", "two", "257", "200,200"] {
            assert!(sizes(None, Some(bad)).is_err(), "{bad}");
        }
    }
}
