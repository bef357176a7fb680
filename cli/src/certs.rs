//! `kvasir certs`: an authority of one's own, and certificates for all roles of a cluster.
//!
//! For development and small clusters. Anything else that makes PEM files will do as well, if the certificates name their
//! roles (`kvasir://worker/ID` and so on, as a URI among the subject's alternative names).

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use kvasir_runtime::tls::{Authority, Identity};

use crate::cert_folder::CertFolder;

/// Makes an authority and certificates for a cluster, or more certificates of the same authority
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  kvasir certs ./certs --workers w0,w1\n  kvasir certs ./certs --host cluster.example.com \
                        --workers w2\n  kvasir up --model model.gguf --workers 2 --tls-dir ./certs"
)]
pub struct CertsArgs {
    /// The folder; it is made if it is not there, and what is in it stays unless --renew or --new-ca say otherwise
    dir: PathBuf,
    /// Workers, by their --id
    #[arg(long, value_name = "IDS", value_delimiter = ',', default_value = "w0,w1")]
    workers: Vec<String>,
    /// Clients besides `client`; each is a tenant
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    clients: Vec<String>,
    /// A name or address by which the coordinator is reached, besides localhost; may be given again
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// How long the certificates are valid
    #[arg(long, default_value_t = 365, value_name = "DAYS", allow_negative_numbers = true)]
    valid_days: i64,
    /// Make those anew that are there; the authority stays
    #[arg(long)]
    renew: bool,
    /// Make another authority, and all certificates anew: nothing that the old one signed is believed any more
    #[arg(long)]
    new_ca: bool,
}

pub fn run(args: &CertsArgs) -> Result<()> {
    ensure!(
        args.valid_days.abs() <= Authority::DAYS,
        "--valid-days {}: {} are the most, as long as the authority itself is valid",
        args.valid_days,
        Authority::DAYS
    );
    let folder = CertFolder(args.dir.clone());
    let wanted = wanted(args)?;
    if !args.dir.is_dir() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&args.dir);
        made.with_context(|| format!("cannot make {}", args.dir.display()))?;
    }
    let authority = authority(&folder, args.new_ca)?;
    for identity in &wanted {
        let files = folder.pair(identity);
        if files.certificate.exists() && files.key.exists() && !args.renew && !args.new_ca {
            println!("kept   {}  {identity}", files.certificate.display());
            continue;
        }
        let issued = authority.issue(identity, &args.host, args.valid_days)?;
        // The pair is replaced file by file; whoever reads in between keeps what it has.
        replace(&files.key, &issued.key, 0o600)?;
        replace(&files.certificate, &issued.certificate, 0o644)?;
        println!("made   {}  {identity}", files.certificate.display());
    }
    let dir = args.dir.display();
    println!("\nto use it:\n  kvasir up --model MODEL --tls-dir {dir}");
    println!(
        "  kvasir chat --endpoint https://localhost:50051 --tls-ca {dir}/ca.pem --tls-cert {dir}/client.pem --tls-key \
         {dir}/client.key"
    );
    println!("keep {dir}/ca.key to yourself: whoever has it can be anybody");
    Ok(())
}

fn wanted(args: &CertsArgs) -> Result<Vec<Identity>> {
    let named = [Identity::Coordinator]
        .into_iter()
        .chain([
            Identity::Client("client".to_owned()),
            Identity::Admin("admin".to_owned()),
        ])
        .chain(args.clients.iter().cloned().map(Identity::Client))
        .chain(args.workers.iter().cloned().map(Identity::Worker));
    for name in args.clients.iter().chain(&args.workers) {
        Identity::check_name(name)?;
    }
    Ok(named.collect())
}

/// The one in the folder, or a new one.
fn authority(folder: &CertFolder, anew: bool) -> Result<Authority> {
    let (certificate, key) = (folder.authority(), folder.authority_key());
    if certificate.exists() && !anew {
        let text = fs::read_to_string(&key).with_context(|| {
            format!(
                "{} is here and its key cannot be read from {}",
                certificate.display(),
                key.display()
            )
        })?;
        println!("kept   {}  the authority", certificate.display());
        return Ok(Authority::from_key(&text)?);
    }
    if key.exists() && !anew {
        bail!(
            "{} is here without {}; --new-ca makes both anew",
            key.display(),
            certificate.display()
        );
    }
    let (authority, issued) = Authority::generate()?;
    replace(&key, &issued.key, 0o600)?;
    replace(&certificate, &issued.certificate, 0o644)?;
    println!("made   {}  the authority", certificate.display());
    Ok(authority)
}

/// In one go: a reader sees the old file or the new one.
fn replace(path: &Path, text: &str, mode: u32) -> Result<()> {
    let draft = path.with_extension("draft");
    let write = || {
        // One that was left behind may be readable by others.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
