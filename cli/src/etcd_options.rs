//! Where coordinators and workers find each other: the flags that `coordinator` and `worker` share.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kvasir_runtime::{
    registry::{EtcdConfig, Password, RegistryConfig},
    tls::{ClientTlsFiles, KeyPairFiles},
};

/// The password is in no flag, where other users of the machine would see it.
const PASSWORD: &str = "KVASIR_ETCD_PASSWORD";

#[derive(Args, Clone, Debug)]
pub struct EtcdOptions {
    /// An etcd, through which coordinators and workers find each other: the address of a member, or several with commas
    /// between them. It is waited for when it is away, and nothing that serves stops meanwhile
    #[arg(long, env = "KVASIR_ETCD", value_name = "URL[,URL...]")]
    pub etcd: Option<String>,
    /// The name of the cluster: all keys begin with /NAME/
    #[arg(long, default_value = "kvasir", value_name = "NAME")]
    etcd_prefix: String,
    /// A user of etcd; the password is in KVASIR_ETCD_PASSWORD
    #[arg(long, env = "KVASIR_ETCD_USER", value_name = "NAME", requires = "etcd")]
    etcd_user: Option<String>,
    /// The authority that signed etcd's certificates, for https://
    #[arg(long, value_name = "FILE", requires = "etcd")]
    etcd_ca: Option<PathBuf>,
    /// A certificate to show to etcd
    #[arg(long, value_name = "FILE", requires = "etcd_ca", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
}

impl EtcdOptions {
    /// `None` without `--etcd`. Errors with what cannot be used.
    pub fn config(&self) -> Result<Option<EtcdConfig>> {
        let Some(endpoints) = &self.etcd else {
            return Ok(None);
        };
        let pair = KeyPairFiles::of(self.etcd_cert.as_ref(), self.etcd_key.as_ref());
        let tls = self.etcd_ca.clone().map(|authority| ClientTlsFiles { authority, pair });
        let mut config = EtcdConfig::parse(endpoints, &self.etcd_prefix, tls)?;
        if let Some(user) = &self.etcd_user {
            let password = std::env::var(PASSWORD);
            let password = password.with_context(|| format!("--etcd-user {user} needs a password in {PASSWORD}"))?;
            config.user = Some((user.clone(), Password(password)));
        }
        Ok(Some(config))
    }

    pub fn registry(&self) -> Result<RegistryConfig> {
        let etcd = self.config()?;
        Ok(etcd.map_or(RegistryConfig::Embedded, RegistryConfig::Etcd))
    }
}
