//! Where a model is: a path on this machine, or a repository of the Hugging Face hub, fetched into the hub's usual cache.
//!
//! The environment is that of the hub's other clients: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE. What is in the cache
//! serves without a network.

use std::{
    env,
    path::{Component, Path, PathBuf},
};

use anyhow::{Result, anyhow, bail};
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};
use serde::Deserialize;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
/// What else a folder is made of, as far as a repository has it.
const TEXT_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The local path of a model. `ORGANIZATION/NAME` names a repository, `ORGANIZATION/NAME/FILE.gguf` one of its files, unless
/// there is such a path here.
pub fn locate(model: &Path, revision: &str) -> Result<PathBuf> {
    match Source::parse(model, revision) {
        Some(source) if !model.exists() => source.fetch(),
        _ => Ok(model.to_path_buf()),
    }
}

/// A model in a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Source {
    repository: String,
    revision: String,
    file: Option<String>,
}

impl Source {
    /// `None` for what can only be a path.
    fn parse(model: &Path, revision: &str) -> Option<Self> {
        let parts: Vec<&str> = model.to_str()?.split('/').collect();
        let [organization, name, file @ ..] = &parts[..] else {
            return None;
        };
        if !is_name(organization) || !is_name(name) || name.ends_with(".gguf") {
            return None;
        }
        let file = (!file.is_empty()).then(|| file.join("/"));
        file.as_ref().is_none_or(|file| stays_inside(file)).then(|| Self {
            repository: format!("{organization}/{name}"),
            revision: revision.to_owned(),
            file,
        })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Model, self.revision.clone())
    }

    fn fetch(&self) -> Result<PathBuf> {
        let cache = Cache::from_env();
        if is_offline() {
            return self.find_in(&cache).ok_or_else(|| {
                anyhow!(
                    "{self} is neither a path here nor in the cache at {}, and HF_HUB_OFFLINE forbids to fetch it",
                    cache.path().display()
                )
            });
        }
        match self.download(&cache) {
            Err(FetchError::Hub(error)) if !is_answer(&error) => match self.find_in(&cache) {
                Some(path) => {
                    eprintln!("the hub cannot be reached ({error}): {self} is taken from the cache");
                    Ok(path)
                }
                None => bail!(
                    "{self} is neither a path here nor in the cache at {}, and the hub cannot be reached: {error}",
                    cache.path().display()
                ),
            },
            Err(FetchError::Hub(error)) => Err(self.explain(&error)),
            Err(FetchError::Other(error)) => Err(error),
            Ok(path) => Ok(path),
        }
    }

    fn download(&self, cache: &Cache) -> Result<PathBuf, FetchError> {
        let token = env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
        let api = ApiBuilder::from_env()
            .with_token(token.or_else(|| cache.token()))
            .with_retries(3)
            .build()?;
        let repo = api.repo(self.repo());
        if let Some(file) = &self.file {
            return Ok(repo.get(file)?);
        }
        let info = repo.info()?;
        let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let has = |name: &str| files.iter().any(|file| file == name);
        if has(CONFIG) && (has(INDEX) || has(WEIGHTS)) {
            return download_folder(&repo, &files);
        }
        match &gguf_files(files.iter().map(String::as_str))[..] {
            [] => Err(anyhow!("{self} has neither a GGUF file nor {CONFIG} with safetensors files").into()),
            [file] => Ok(repo.get(file)?),
            several => Err(anyhow!(
                "{self} has several GGUF files; name one, e.g. {}/{}; there are: {}",
                self.repository,
                several[0],
                several.join(", ")
            )
            .into()),
        }
    }

    /// What an earlier run has fetched.
    fn find_in(&self, cache: &Cache) -> Option<PathBuf> {
        let repo = cache.repo(self.repo());
        if let Some(file) = &self.file {
            return repo.get(file);
        }
        if let Some(config) = repo.get(CONFIG) {
            return config.parent().map(Path::to_path_buf);
        }
        let reference = repository_folder(cache, &self.repository)
            .join("refs")
            .join(&self.revision);
        let commit = std::fs::read_to_string(reference).ok()?;
        let snapshot = repository_folder(cache, &self.repository)
            .join("snapshots")
            .join(commit.trim());
        let files = std::fs::read_dir(&snapshot).ok()?;
        let names: Vec<String> = files
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .collect();
        match &gguf_files(names.iter().map(String::as_str))[..] {
            [file] => Some(snapshot.join(file)),
            _ => None,
        }
    }

    /// What the hub's answer means.
    fn explain(&self, error: &ApiError) -> anyhow::Error {
        let Some(status) = status_of(error) else {
            return anyhow!("{self}: {error}");
        };
        match status {
            401 | 403 => anyhow!(
                "{self} is no path here, and the hub says {status}: there is no such repository, or it is private or gated; \
                 set HF_TOKEN to a token that may read it"
            ),
            404 => anyhow!(
                "{self} is no path here, and the hub says 404: there is no such repository, revision ({}) or file",
                self.revision
            ),
            _ => anyhow!("{self} cannot be fetched: the hub says {status}"),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repository)?;
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

enum FetchError {
    Hub(ApiError),
    Other(anyhow::Error),
}

impl From<ApiError> for FetchError {
    fn from(error: ApiError) -> Self {
        Self::Hub(error)
    }
}

impl From<anyhow::Error> for FetchError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// The files of the index, for their names.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Returns the folder that the files came into.
fn download_folder(repo: &ApiRepo, files: &[String]) -> Result<PathBuf, FetchError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let config = repo.get(CONFIG)?;
    for name in TEXT_FILES.into_iter().filter(|name| has(name)) {
        repo.get(name)?;
    }
    let mut weights = vec![WEIGHTS.to_owned()];
    if has(INDEX) {
        let index = std::fs::read(repo.get(INDEX)?).map_err(ApiError::from)?;
        let index: Index = serde_json::from_slice(&index).map_err(|error| anyhow!("{INDEX}: {error}"))?;
        weights = index.weight_map.into_values().collect();
        weights.sort();
        weights.dedup();
    }
    for name in weights {
        // A name with a path in it would leave the cache.
        if !stays_inside(&name) {
            return Err(anyhow!("{INDEX} names the file {name:?}, which is not in the repository").into());
        }
        repo.get(&name)?;
    }
    let folder = config
        .parent()
        .ok_or_else(|| anyhow!("{} has no folder", config.display()))?;
    Ok(folder.to_path_buf())
}

fn gguf_files<'f>(files: impl Iterator<Item = &'f str>) -> Vec<&'f str> {
    let mut files: Vec<&str> = files
        .filter(|file| file.ends_with(".gguf") && stays_inside(file))
        .collect();
    files.sort();
    files
}

/// The cache's folder of a repository.
fn repository_folder(cache: &Cache, repository: &str) -> PathBuf {
    cache.path().join(format!("models--{}", repository.replace('/', "--")))
}

/// As the hub allows them for organizations and repositories.
fn is_name(part: &str) -> bool {
    let starts_well = part.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts_well && part.len() <= 96 && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn stays_inside(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn is_offline() -> bool {
    env::var("HF_HUB_OFFLINE").is_ok_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

/// Whether the hub answered at all.
fn is_answer(error: &ApiError) -> bool {
    status_of(error).is_some() || matches!(error, ApiError::MissingHeader(_) | ApiError::InvalidHeader(_))
}

fn status_of(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status_of(error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(model: &str) -> Option<(String, Option<String>)> {
        Source::parse(Path::new(model), "main").map(|source| (source.repository, source.file))
    }

    #[test]
    fn repositories_are_told_from_paths() {
        let repository = |name: &str, file: Option<&str>| Some((name.to_owned(), file.map(str::to_owned)));
        assert_eq!(parse("org/name"), repository("org/name", None));
        assert_eq!(
            parse("org/name-GGUF/a.gguf"),
            repository("org/name-GGUF", Some("a.gguf"))
        );
        assert_eq!(parse("org/name/sub/a.gguf"), repository("org/name", Some("sub/a.gguf")));
        for path in [
            "model.gguf",
            "/org/name",
            "./org/name",
            "../name",
            "models/a.gguf",
            "org/name/../../x",
            "a b/c",
            "",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
