//! How many workers there are, and which groups they form.

use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::Args;
use kvasir_coordinator::{GroupRole, UnknownRole};

const WORKERS_MAX: u32 = 256;

#[derive(Args, Clone, Debug, Default)]
pub struct GroupOptions {
    /// Workers of all groups together; any number, also one that does not divide the model's heads [default: one a group]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    workers: Option<u32>,
    /// Groups that each serve the whole model: how many, or the workers of each, as in 1,4; with roles, as in
    /// 1:prefill,4:decode, prompts are computed in some and answers in others [default: 1]
    #[arg(long, value_name = "M|N[:ROLE],...")]
    groups: Option<Groups>,
}

/// `M`: so many groups, as even as can be. `N,N,...`: the ranks of each, and what it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Groups {
    Count(u32),
    Sizes(Vec<(u32, GroupRole)>),
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
        let group = |part: &str| match part.split_once(':') {
            Some((size, role)) => {
                let role: GroupRole = role.trim().parse().map_err(|error: UnknownRole| error.to_string())?;
                Ok((number(size)?, role))
            }
            None => Ok((number(part)?, GroupRole::Both)),
        };
        let sizes: Vec<(u32, GroupRole)> = text.split(',').map(group).collect::<Result<_, String>>()?;
        let sum: u32 = sizes.iter().map(|(size, _)| size).sum();
        match sizes[..] {
            [(count, _)] if !text.contains(':') => Ok(Self::Count(count)),
            _ if sum > WORKERS_MAX => Err(format!("{sum} workers in all; at most {WORKERS_MAX} are possible")),
            _ => Ok(Self::Sizes(sizes)),
        }
    }
}

impl GroupOptions {
    /// What each group is for; empty where all are for both.
    pub fn roles(&self) -> Vec<GroupRole> {
        match &self.groups {
            Some(Groups::Sizes(sizes)) => sizes.iter().map(|(_, role)| *role).collect(),
            _ => Vec::new(),
        }
    }

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
                let sum: u32 = sizes.iter().map(|(size, _)| size).sum();
                ensure!(
                    workers.is_none_or(|workers| workers == sum),
                    "--groups asks for {sum} workers in all, --workers for {}",
                    workers.unwrap_or_default()
                );
                Ok(sizes.iter().map(|(size, _)| *size).collect())
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
    fn groups_have_roles() {
        use GroupRole::{Both, Decode, Prefill};
        let of = |text: &str| {
            let options = GroupOptions {
                workers: None,
                groups: Some(text.parse().unwrap()),
            };
            (options.sizes().unwrap(), options.roles())
        };
        assert_eq!(of("1:prefill,4:decode,2"), (vec![1, 4, 2], vec![Prefill, Decode, Both]));
        assert_eq!(of("2:both"), (vec![2], vec![Both]));
        assert_eq!(of("2").1, vec![]);
        let wrong = "1:prefil,2".parse::<Groups>().unwrap_err();
        assert!(
            wrong.contains("`prefil`") && wrong.contains("prefill and decode"),
            "{wrong}"
        );
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
