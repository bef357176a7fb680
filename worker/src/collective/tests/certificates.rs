//! Certificates of an authority that lives as long as a test.

use std::path::PathBuf;

use kvasir_runtime::tls::{Authority, Identity, KeyPairFiles, PeerDoor, PeerTls, PeerTlsFiles};
use tempfile::TempDir;

pub struct Certificates {
    authority: Authority,
    folder: TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (authority, issued) = Authority::generate().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issued.certificate).unwrap();
        Self { authority, folder }
    }

    /// How this worker meets its peers.
    pub fn worker(&self, id: &str) -> PeerDoor {
        let pair = self.pair(&Identity::Worker(id.to_owned()), 1);
        PeerDoor::new(Some(PeerTls::open(self.files(pair)).unwrap()))
    }

    pub fn files(&self, pair: KeyPairFiles) -> PeerTlsFiles {
        PeerTlsFiles {
            authority: self.folder.path().join("ca.pem"),
            pair,
        }
    }

    pub fn pair(&self, identity: &Identity, valid_days: i64) -> KeyPairFiles {
        let issued = self.authority.issue(identity, &[], valid_days).unwrap();
        let stem = identity.to_string().replace([':', '/'], "_");
        let write = |name: String, text: String| -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        KeyPairFiles {
            certificate: write(format!("{stem}{valid_days}.pem"), issued.certificate),
            key: write(format!("{stem}{valid_days}.key"), issued.key),
        }
    }
}
