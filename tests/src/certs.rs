//! A folder of certificates for one test, made by `kvasir certs`.

use std::path::{Path, PathBuf};

use kvasir_runtime::tls::{self, ClientTls, ClientTlsFiles, KeyPairFiles};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::cluster_sandbox::kvasir;

#[derive(Debug)]
pub struct Certs {
    folder: TempDir,
}

impl Certs {
    /// For a coordinator, a client, an admin, and the workers and clients that `flags` name. Panics if they cannot be made.
    pub fn make(flags: &[&str]) -> Self {
        let certs = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        certs.again(flags);
        certs
    }

    /// More of the same authority, or others, as `flags` say. Panics if they cannot be made.
    pub fn again(&self, flags: &[&str]) {
        let output = kvasir([&["certs", self.dir()], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn dir(&self) -> &str {
        text(self.folder.path())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a client is given to show the certificate `stem`.pem.
    pub fn flags_of(&self, stem: &str) -> Vec<String> {
        let pair = self.pair(stem);
        let files = [
            ("--tls-ca", self.path("ca.pem")),
            ("--tls-cert", pair.certificate),
            ("--tls-key", pair.key),
        ];
        let flag = |(flag, file): (&str, PathBuf)| [flag.to_owned(), text(&file).to_owned()];
        files.into_iter().flat_map(flag).collect()
    }

    pub fn pair(&self, stem: &str) -> KeyPairFiles {
        KeyPairFiles {
            certificate: self.path(&format!("{stem}.pem")),
            key: self.path(&format!("{stem}.key")),
        }
    }

    /// For a client that shows a certificate, or none.
    pub fn tls(&self, stem: Option<&str>) -> ClientTls {
        self.tls_showing(stem.map(|stem| self.pair(stem)))
    }

    /// For a client that believes this authority, whatever it shows.
    pub fn tls_showing(&self, pair: Option<KeyPairFiles>) -> ClientTls {
        let authority = self.path("ca.pem");
        ClientTls::open(ClientTlsFiles { authority, pair }).expect("files that were made for this")
    }
}

/// Errors as a client sees them.
pub async fn dial(endpoint: &str, tls: Option<&ClientTls>) -> Result<Channel, tonic::transport::Error> {
    tls::dial(&tls::endpoint(endpoint)?, tls).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
