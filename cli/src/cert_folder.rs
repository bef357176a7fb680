//! A folder of certificates as `kvasir certs` makes it: the names of its files.

use std::path::PathBuf;

use kvasir_runtime::tls::{Identity, KeyPairFiles};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertFolder(pub PathBuf);

impl CertFolder {
    /// The authority's certificate: what everybody needs.
    pub fn authority(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// What signs. Belongs nowhere but here.
    pub fn authority_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    /// The client and the admin that every folder has are called by their role.
    pub fn pair(&self, identity: &Identity) -> KeyPairFiles {
        let stem = match identity {
            Identity::Coordinator => "coordinator".to_owned(),
            Identity::Worker(id) => format!("worker-{id}"),
            Identity::Client(name) if name == "client" => name.clone(),
            Identity::Client(name) => format!("client-{name}"),
            Identity::Admin(name) if name == "admin" => name.clone(),
            Identity::Admin(name) => format!("admin-{name}"),
        };
        KeyPairFiles {
            certificate: self.0.join(format!("{stem}.pem")),
            key: self.0.join(format!("{stem}.key")),
        }
    }
}
