//! Who gets in: certificates of another CA, joining with right and wrong tokens and fingerprints.

mod support;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outpost_cluster::ca::{self, Ca};
use outpost_cluster::join::{self, JoinError, JoinRequest};
use outpost_cluster::tokens::Tokens;
use outpost_cluster::{Cluster, ClusterConfig};
use support::{Notes, Plant, start, until};

#[derive(Clone, Default)]
struct LogLines(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogLines {
    fn with(&self, words: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| line.contains(words))
            .map(str::to_owned)
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_ca_is_refused_with_one_clear_line_and_counted() {
    let log = LogLines::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let (plant, other) = (Plant::new("plant"), Plant::new("plant"));
    let (a, on_a) = start(plant.config("edge-a", &[])).await;
    let (stranger, on_stranger) = start(other.config("edge-b", &[a.local_addr()])).await;
    until("the stranger tries more than once", || {
        stranger.status().counters.refused_handshakes > 2
    })
    .await;
    assert!(!on_a.linked("edge-b") && !on_stranger.linked("edge-a"));
    assert_eq!(on_a.history("edge-b").len() + on_stranger.history("edge-a").len(), 0);

    // The other way round: the stranger accepts the CA, but shows a certificate of its own.
    let mut config = other.config("edge-c", &[a.local_addr()]);
    config.ca_pem = other.root.path().join("edge-c").join("mixed.pem");
    std::fs::write(&config.ca_pem, plant.ca.pem()).expect("written");
    let refused = Cluster::start(config, Arc::new(Notes::default()), 1)
        .await
        .err()
        .expect("does not fit together");
    assert!(refused.to_string().contains("is not valid under"), "{refused}");

    let lines = log.with("refused a connection");
    assert!(
        !lines.is_empty() && lines.len() <= 2,
        "one line a side, not one an attempt: {lines:?}"
    );
    assert!(
        lines.iter().any(|line| line.contains("not signed by this cluster's CA, SHA256:")),
        "{lines:?}"
    );
    println!("{}", lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_certificate_makes_no_node() {
    let plant = Plant::new("plant");
    let mut config = plant.config("edge-a", &[]);
    let device = plant.ca.issue_device("pump-7").expect("issued");
    std::fs::write(&config.cert_pem, &device.cert_pem).expect("written");
    std::fs::write(&config.key_pem, &device.key_pem).expect("written");
    config.name = "edge-a".into();
    let refused =
        Cluster::start(config, Arc::new(Notes::default()), 1).await.err().expect("not a node");
    assert!(refused.to_string().contains("spiffe://plant/device/pump-7"), "{refused}");
}

fn request(at: &Cluster, token: &str, name: &str, plant: &Plant) -> JoinRequest {
    JoinRequest {
        at: at.local_addr().to_string(),
        token: token.to_owned(),
        name: name.to_owned(),
        folder: plant.root.path().join(format!("joined-{name}")),
    }
}

/// A node that holds the CA.
async fn first_node(plant: &Plant) -> (Cluster, Arc<Notes>) {
    let mut config = plant.config("edge-a", &[]);
    config.ca_pem = plant.ca_folder().join(ca::CA_FILE);
    config.ca_key = Some(plant.ca_folder().join(ca::CA_KEY_FILE));
    start(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_joins_with_token_and_fingerprint_and_becomes_a_peer() {
    let plant = Plant::new("plant");
    let (a, on_a) = first_node(&plant).await;
    let tokens = Tokens::in_folder(&plant.ca_folder());
    let token = tokens.create(None, Duration::from_mins(1)).expect("a token");
    let mut shown = String::new();
    let wish = request(&a, &token, "edge-b", &plant);
    let folder = wish.folder.clone();
    let joined = join::join(wish, |fingerprint| {
        shown = fingerprint.to_owned();
        true
    });
    let joined = joined.await.expect("joins");
    assert_eq!((joined.cluster.as_str(), joined.name.as_str()), ("plant", "edge-b"));
    assert_eq!(shown, plant.ca.fingerprint());
    assert_eq!(a.status().ca_fingerprint, shown);

    let mut config = ClusterConfig::in_folder("plant", "edge-b", &folder);
    config.bind = "127.0.0.1:0".parse().expect("an address");
    config.seeds = vec![a.local_addr().to_string()];
    let (_b, on_b) = start(config).await;
    until("linked", || on_a.linked("edge-b") && on_b.linked("edge-a")).await;

    let again = join::join(request(&a, &token, "edge-c", &plant), |_| true).await;
    assert!(
        matches!(&again, Err(JoinError::Refused(why)) if why.contains("not valid")),
        "{again:?}"
    );
    assert_eq!((a.status().counters.joins_granted, a.status().counters.joins_refused), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_fingerprint_sends_no_token_and_wrong_tokens_are_bounded() {
    let plant = Plant::new("plant");
    let (a, _notes) = first_node(&plant).await;
    let tokens = Tokens::in_folder(&plant.ca_folder());
    let token = tokens.create(None, Duration::from_mins(1)).expect("a token");
    let unsure = join::join(request(&a, &token, "edge-b", &plant), |_| false).await;
    assert!(matches!(unsure, Err(JoinError::NotConfirmed(_))), "{unsure:?}");
    assert!(!plant.root.path().join("joined-edge-b").exists());
    assert_eq!(a.status().counters.joins_refused, 0, "the node was not even asked");

    for n in 0..join::REFUSED_MAX {
        let guess = join::join(request(&a, &format!("opj-{n}"), "edge-b", &plant), |_| true).await;
        assert!(matches!(guess, Err(JoinError::Refused(_))), "{guess:?}");
    }
    let locked = join::join(request(&a, &token, "edge-b", &plant), |_| true).await;
    assert!(
        matches!(&locked, Err(JoinError::Refused(why)) if why.contains("too many")),
        "{locked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_ca_key_lets_nobody_join() {
    let plant = Plant::new("plant");
    let (a, _notes) = start(plant.config("edge-a", &[])).await;
    let refused = join::join(request(&a, "opj-1", "edge-b", &plant), |_| true).await;
    assert!(matches!(refused, Err(JoinError::NotANode { .. })), "{refused:?}");
}

#[test]
fn a_ca_is_made_once_and_its_key_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().expect("a folder");
    let ca = Ca::create(root.path(), "plant").expect("made");
    assert!(ca.fingerprint().starts_with("SHA256:") && ca.fingerprint().len() == 7 + 32 * 3 - 1);
    assert_eq!(
        ca::fingerprint_of_file(&root.path().join(ca::CA_FILE)).expect("readable"),
        ca.fingerprint()
    );
    let mode =
        std::fs::metadata(root.path().join(ca::CA_KEY_FILE)).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(Ca::create(root.path(), "plant"), Err(ca::CaError::Exists(_))));
    assert!(Ca::create(&root.path().join("b"), "Not A Name").is_err());
    assert!(ca.issue_node("Edge").is_err() && ca.sign_node_request("edge", b"nonsense").is_err());
    let again = Ca::load(&root.path().join(ca::CA_FILE), &root.path().join(ca::CA_KEY_FILE))
        .expect("loads");
    assert_eq!(again.cluster(), "plant");
    let other = root.path().join("other");
    Ca::create(&other, "plant").expect("made");
    assert!(
        Ca::load(&root.path().join(ca::CA_FILE), &other.join(ca::CA_KEY_FILE)).is_err(),
        "keys of two CAs"
    );
}

#[test]
fn what_the_ca_issues_keeps_the_rules_of_spiffe() {
    use outpost_security::identity::{Identity, IdentityError, IdentityKind};
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let plant = Plant::new("plant");
    let read = |pem: &str| {
        Identity::from_der(&CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM"))
    };
    let node = read(&plant.ca.issue_node("edge-1").expect("issued").cert_pem).expect("a node");
    assert_eq!(
        (node.kind, node.name.as_str(), node.cluster.as_str()),
        (IdentityKind::Node, "edge-1", "plant")
    );
    let now_s = i64::try_from(support::wall_ms() / 1_000).expect("fits");
    assert!(node.not_before_s < now_s && node.not_after_s > now_s + 300 * 24 * 3_600);
    let device =
        read(&plant.ca.issue_device("Pump_7").expect("issued").cert_pem).expect("a device");
    assert_eq!(device.uri(), "spiffe://plant/device/Pump_7");
    assert_eq!(read(plant.ca.pem()), Err(IdentityError::MaySign));

    let mut two = rcgen::CertificateParams::default();
    let uri = |text: &str| rcgen::SanType::URI(text.try_into().expect("ASCII"));
    two.subject_alt_names = vec![uri("spiffe://plant/node/a"), uri("spiffe://plant/node/b")];
    let key = rcgen::KeyPair::generate().expect("a key");
    assert_eq!(read(&two.self_signed(&key).expect("made").pem()), Err(IdentityError::UriCount(2)));
    two.subject_alt_names.pop();
    two.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    assert_eq!(read(&two.self_signed(&key).expect("made").pem()), Err(IdentityError::IsCa));
    two.is_ca = rcgen::IsCa::ExplicitNoCa;
    two.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    assert_eq!(read(&two.self_signed(&key).expect("made").pem()), Err(IdentityError::MaySign));
}
