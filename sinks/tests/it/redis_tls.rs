//! Redis over TLS: everything that it is used for, and which certificates are refused.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use tidegate_sinks::redis::RedisConfig;

use crate::certificates::Authority;
use crate::redis_streams::World;
use crate::redis_world::{RedisServer, until};
use crate::{redis_fan_out, redis_ids};

/// A server that is also reached over TLS, and the URL for that.
fn server(authority: &Authority) -> (RedisServer, String) {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let (certificate, key) = authority.signed();
    let [certificate, key] = [certificate, key].map(|path| path.to_str().expect("a path").to_owned());
    let server = RedisServer::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
    ]);
    let url = server.url().replace("redis://", "rediss://").replace(&server.port.to_string(), &port.to_string());
    (server, url)
}

/// The same over TLS, with time for its handshakes.
fn over_tls(config: RedisConfig, ca_file: PathBuf) -> RedisConfig {
    RedisConfig { ca_file: Some(ca_file), connect_ms_max: 5_000, ..config }
}

#[test]
fn streams_shared_ids_and_alerts_go_over_tls() {
    let authority = Authority::new("one");
    let (server, url) = server(&authority);
    let mut world = World::new(&over_tls(crate::redis_world::config(&url), authority.file()));
    world.send(20);
    world.must_be_whole(&server, "over TLS");
    redis_ids::share(&over_tls(redis_ids::config(&url), authority.file()));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(redis_fan_out::tell(&over_tls(redis_fan_out::config(&url), authority.file())));
    assert_eq!(server.denied(), "");
}

#[test]
fn a_certificate_that_is_not_trusted_is_refused_with_a_reason() {
    let [authority, other, namesake] = ["one", "another", "one"].map(Authority::new);
    let (server, url) = server(&authority);
    let cases = [
        (url.clone(), other.file(), "name a file with the one that has in ca_file"),
        (url.clone(), namesake.file(), "name a file with the one that has in ca_file"),
        (url.replace("127.0.0.1", "localhost"), authority.file(), "is for another name"),
    ];
    for (url, ca_file, words) in cases {
        let mut world = World::new(&over_tls(crate::redis_world::config(&url), ca_file));
        world.send(1);
        until(&format!("{words:?} is told"), || world.detail().contains(words));
        assert!(!world.detail().contains("throw-away"), "{}", world.detail());
    }
    assert!(server.ids("tidegate").is_empty(), "nothing was sent");
}
