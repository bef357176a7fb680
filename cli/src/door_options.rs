//! Who may come in: the flags that `up` and `coordinator` share.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kvasir_runtime::{
    door::{ConnLimits, DoorConfig},
    tls::{Identity, KeyPairFiles, ServerTlsFiles},
};

use crate::cert_folder::CertFolder;

#[derive(Args, Clone, Debug)]
pub struct DoorOptions {
    /// The coordinator's certificate, as PEM: clients and workers connect with TLS. Read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority that signs workers and clients: workers must show a certificate, clients one or an API key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// A folder that `kvasir certs` made, in place of these three
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key", "tls_ca"])]
    tls_dir: Option<PathBuf>,
    /// Hashed API keys, a line each as `kvasir key` prints it. Read again when it changes
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Listen to other machines although not everything is encrypted, or anybody may ask
    #[arg(long)]
    insecure: bool,
    /// Most connections of clients and workers; one more is closed at once
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Most connections from one address
    #[arg(long, default_value_t = 1024, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections_per_client: u32,
}

impl DoorOptions {
    pub fn config(&self) -> DoorConfig {
        let pair = KeyPairFiles::of(self.tls_cert.as_ref(), self.tls_key.as_ref());
        let files = pair.map(|pair| ServerTlsFiles {
            pair,
            authority: self.tls_ca.clone(),
        });
        let of_folder = self.folder().map(|folder| ServerTlsFiles {
            pair: folder.pair(&Identity::Coordinator),
            authority: Some(folder.authority()),
        });
        DoorConfig {
            tls: files.or(of_folder),
            api_keys: self.api_keys.clone(),
            insecure: self.insecure,
            limits: ConnLimits {
                connections_max: self.connections,
                connections_per_client_max: self.connections_per_client,
                ..ConnLimits::default()
            },
        }
    }

    pub fn folder(&self) -> Option<CertFolder> {
        self.tls_dir.clone().map(CertFolder)
    }

    /// For `up`, whose workers need certificates as well. Errors if there is nowhere to take them from.
    pub fn workers_folder(&self) -> Result<Option<CertFolder>> {
        anyhow::ensure!(
            self.tls_cert.is_none(),
            "the workers that `up` starts need certificates, too; give --tls-dir, a folder that `kvasir certs` made"
        );
        Ok(self.folder())
    }
}
