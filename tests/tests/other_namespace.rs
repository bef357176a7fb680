//! From another machine nothing can be reached that was not opened on purpose.

#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};

use kvasir_tests::{
    certs::Certs,
    cluster_sandbox::{ClusterSandbox, kvasir_binary},
    listening_ports::listening_ports,
    network_namespace::NetworkNamespace,
    tiny_model::TinyModel,
};

/// Whether a connection to that port of this machine is made from over there.
fn connects(from: &NetworkNamespace, port: u16) -> bool {
    let connect = format!("exec 3<>/dev/tcp/{}/{port}", from.here);
    from.run("timeout", &["5", "bash", "-c", &connect]).status.success()
}

#[test]
fn from_another_machine_nothing_is_open_by_default_and_with_certificates_only_the_coordinators_port() {
    let Some(other) = NetworkNamespace::new() else {
        println!("skipped: only root may make network namespaces");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    // The cable works: what is open is reached.
    let open = TcpListener::bind((other.here, 0)).unwrap();
    assert!(connects(&other, open.local_addr().unwrap().port()));

    let sandbox = ClusterSandbox::start(&model, 2, &["--transport", "tcp"]);
    let ports = |sandbox: &ClusterSandbox| -> Vec<SocketAddr> {
        let pids = sandbox.worker_pids().iter().copied().chain([sandbox.pid()]);
        pids.flat_map(listening_ports).collect()
    };
    let found = ports(&sandbox);
    assert_eq!(found.len(), 3, "the coordinator's and one of each worker: {found:?}");
    for address in &found {
        assert!(!connects(&other, address.port()), "{address} is open to other machines");
    }
    drop(sandbox);

    // Opened on purpose: a client with a certificate comes in, one without does not.
    let certs = Certs::make(&["--host", &other.here.to_string()]);
    let sandbox = ClusterSandbox::start_encrypted(&model, 2, &["--transport", "tcp", "--grpc", "0.0.0.0:0"], &certs);
    let found = ports(&sandbox);
    let open: Vec<_> = found
        .iter()
        .filter(|address| connects(&other, address.port()))
        .collect();
    assert_eq!(open.len(), 1, "{found:?}");
    let endpoint = format!("https://{}:{}", other.here, open[0].port());
    let binary = kvasir_binary();
    let status = |flags: &[String]| {
        let mut args = vec!["status", "--endpoint", endpoint.as_str()];
        args.extend(flags.iter().map(String::as_str));
        other.run(binary.to_str().unwrap(), &args)
    };
    let admin = status(&certs.flags_of("admin"));
    assert!(admin.status.success(), "{admin:?}");
    let nobody = status(&certs.flags_of("admin")[..2]);
    let stderr = String::from_utf8(nobody.stderr).unwrap();
    assert!(stderr.contains("certificate"), "{stderr}");
}
