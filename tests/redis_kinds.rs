//! Every way to reach Redis: TCP, TLS, unix socket, with password, from a file, as a cluster.

mod support;

use std::fs;

use nymea_remoteproxy::config::{self, Secret};
use nymea_remoteproxy::rendezvous::redis::{RedisRendezvous, SetupError};
use nymea_remoteproxy::rendezvous::{Answer, Rendezvous};
use support::redis::{
    Server, ask, asking, away, cluster, free_port, join, offer, quick_settings, settings, until, up,
};
use support::soon;

/// Two nodes meet with these settings.
async fn meet(settings: &config::Redis) {
    let (a, b) = (join(settings, "a"), join(settings, "b"));
    up(&a).await;
    up(&b).await;
    for number in 0..20 {
        let token = format!("t{number}");
        let first = offer(&token);
        assert_eq!(ask(&a, first).await, Answer::Wait);
        let second = ask(&b, offer(&token)).await;
        assert!(matches!(second, Answer::Claimed(waiting) if waiting.id == first.id));
        a.release(first.key, first.id);
    }
    a.close().await;
    b.close().await;
}

#[tokio::test]
async fn unix_socket() {
    let server = Server::with("unixsocket DIR/socket").await;
    let path = server.dir().join("socket").display().to_string();
    for url in [format!("unix:{path}"), format!("redis+unix://{path}?db=3")] {
        meet(&settings(&url)).await;
    }
    assert!(server.keys().await.is_empty());
}

#[tokio::test]
async fn password_user_and_database() {
    let mut server = Server::start().await;
    server.ask::<()>(&["ACL", "SETUSER", "proxy", "on", ">ge:heim", "~nymea*", "+@all"]).await;
    let url = format!("redis://proxy:ge%3Aheim@127.0.0.1:{}/2", server.port);
    meet(&settings(&url)).await;

    let file = server.dir().join("url");
    fs::write(&file, format!("{url}\n")).expect("written");
    meet(&config::Redis { url_file: Some(file), ..quick_settings() }).await;

    let at = join(&settings(&url), "a");
    up(&at).await;
    assert_eq!(ask(&at, offer("t")).await, Answer::Wait);
    let keyspace = async || server.ask::<String>(&["INFO", "keyspace"]).await;
    // The node's lease, the list of nodes, and the entry; those before it have taken theirs back.
    until("three keys", async || keyspace().await.contains("db2:keys=3,")).await;
    assert!(!keyspace().await.contains("db0"));

    // A wrong password is an outage, not an end.
    server.kill();
    away(&at).await;
    server.restart().await;
    let asked = asking(&at, offer("other"));
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!asked.is_finished());
    server.ask::<()>(&["ACL", "SETUSER", "proxy", "on", ">ge:heim", "~nymea*", "+@all"]).await;
    up(&at).await;
}

#[tokio::test]
async fn restricted_users_are_enough() {
    let server = Server::start().await;
    let may = "+evalsha +script|load +exists +del +hmget +hset +hdel +pexpire +set";
    let mut user = vec!["ACL", "SETUSER", "proxy", "on", ">p", "~nymea*", "-@all"];
    user.extend(may.split(' '));
    server.ask::<()>(&user).await;
    meet(&settings(&format!("redis://proxy:p@127.0.0.1:{}", server.port))).await;
}

#[tokio::test]
async fn tls_with_a_certificate_of_ones_own() {
    let port = free_port();
    let signed = rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate");
    let files = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    fs::write(&certificate, signed.cert.pem()).expect("written");
    fs::write(&key, signed.signing_key.serialize_pem()).expect("written");
    let server = Server::with(&format!(
        "tls-port {port}\ntls-auth-clients no\ntls-cert-file {}\ntls-key-file {}",
        certificate.display(),
        key.display()
    ))
    .await;
    let url = format!("rediss://localhost:{port}");
    meet(&config::Redis { ca: Some(certificate), ..settings(&url) }).await;

    // The certificate is not trusted without its CA.
    let at = join(&settings(&url), "a");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    away(&at).await;
    assert!(server.keys().await.is_empty());
}

#[tokio::test]
async fn cluster_of_three() {
    let mut servers = cluster().await;
    let urls = servers[..2].iter().map(|server| Secret::new(server.url())).collect();
    let settings = config::Redis { cluster: urls, ..quick_settings() };
    meet(&settings).await;
    for server in &servers {
        assert!(server.keys().await.is_empty());
    }

    let at = join(&settings, "a");
    up(&at).await;
    for number in 0..30 {
        assert_eq!(ask(&at, offer(&format!("t{number}"))).await, Answer::Wait);
    }
    for server in &servers {
        assert!(!server.pairs().await.is_empty(), "keys are on all nodes");
    }

    let mut epoch = at.epoch();
    epoch.mark_unchanged();
    for server in &mut servers {
        server.kill();
    }
    away(&at).await;
    for server in &mut servers {
        server.restart().await;
    }
    soon("a new epoch", epoch.changed()).await.expect("a keeper");
    assert_eq!(ask(&at, offer("new")).await, Answer::Wait);
}

#[tokio::test]
async fn wrong_settings_are_told_without_their_secrets() {
    let told = |settings: config::Redis| {
        let error = RedisRendezvous::check(&settings).expect_err("wrong");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("geheim"), "{text}");
        error
    };
    assert!(matches!(told(quick_settings()), SetupError::Missing));
    let address = told(settings("redis://user:geheim@0.0.0.0/x"));
    assert!(matches!(address, SetupError::Address { setting: "redis.url", .. }));
    let missing = config::Redis { url_file: Some("/nonexistent/url".into()), ..quick_settings() };
    assert!(matches!(told(missing), SetupError::Unreadable { setting: "redis.url_file", .. }));
}
