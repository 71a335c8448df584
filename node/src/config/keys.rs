//! Every key of the configuration, with its default, its unit, and what goes wrong at either end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub use super::bridge_keys::{Bridge, BridgeDirection, BridgeProtocol, BridgeTopic};
use super::schema::Rule::{Range, Required};
use super::schema::{choice, section};

section! {
    /// One whole configuration. It is checked as one, applied as one, and named by one SHA-256.
    pub struct Config {
        /// Who this node is and where it keeps its data.
        pub node: Node = Node::default();
        /// Where it listens.
        pub listen: Listen = Listen::default();
        /// Further ways in for devices: TLS, WebSocket, QUIC, more addresses.
        pub listener: Vec<Listener> = Vec::new();
        /// Its peers. Leave the whole section out for a node on its own.
        pub cluster: Option<Cluster> = None;
        /// Bounds. Every queue, table and buffer that a device can fill has one.
        pub limits: Limits = Limits::default();
        /// Device shadows: who decides, and whose word counts.
        pub shadows: Shadows = Shadows::default();
        /// Who may connect, and what they may do.
        pub security: Security = Security::default();
        /// Lamps, relays and buttons on this machine.
        pub hardware: Hardware = Hardware::default();
        /// Bridges to other MQTT brokers. The names are those of mosquitto, without `bridge_`.
        pub bridge: Vec<Bridge> = Vec::new();
        /// What the node says about itself, on standard error.
        pub log: Log = Log::default();
    }
}

section! {
    /// Who this node is and where it keeps its data.
    pub struct Node {
        /// The node's name, unique in its cluster and fixed for ever: its certificate, its messages and its shadows carry
        /// it. Two nodes of one name corrupt each other's message numbers; a changed name is a new node.
        pub name: String = "outpost".into();
        /// Directory of the store. On a memory file system a reboot forgets what was acknowledged; on a slow SD card every
        /// acknowledgement waits for the card.
        pub data_dir: PathBuf = PathBuf::from("outpost-data");
        /// Seconds between two updates of the `$SYS` topics; 0 turns them off. Short: subscribers get what hardly changed; long:
        /// dashboards lag behind.
        pub sys_interval_s: u32 = 10, if Range(0, 86_400);
        /// Where clients find the server that took this one's place: `host:port`, or several separated by a space. Who logs
        /// in is refused and told so (MQTT 5: 0x9D; 3.1.1 only hears 0x03). Left out: clients are served.
        pub moved_to: Option<String> = None;
    }
}

section! {
    /// Where the node listens.
    pub struct Listen {
        /// MQTT 3.1.1 and 5 over TCP.
        pub mqtt: ListenMqtt = ListenMqtt::default();
        /// The HTTP API: health, metrics, actors, shadows.
        pub http: ListenHttp = ListenHttp::default();
    }
}

section! {
    /// MQTT 3.1.1 and 5 over TCP.
    pub struct ListenMqtt {
        /// Whether this listener is opened. `false`: devices come in by `[[listener]]` only.
        pub enabled: bool = true;
        /// Address and port. Anything but loopback is refused until there are users (or `anonymous = true`) and access rules.
        pub bind: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1883));
        /// Largest packet in bytes, and what CONNACK announces. Too small cuts off firmware-sized messages; too large lets
        /// each connection claim that much memory.
        pub packet_max_bytes: u32 = 1 << 20, if Range(1_024, 268_435_455);
        /// What an acknowledgement promises: `disk` acknowledges after fdatasync; `memory` at once, and a power cut loses
        /// what was acknowledged.
        pub durability: Durability = Durability::Disk;
        /// Whether clients without user name may connect. Left out: only while `bind` is a loopback address. `true` on an
        /// open address lets everybody in who can reach it, bounded only by the access rules.
        pub anonymous: Option<bool> = None;
    }
}

section! {
    /// One more listener.
    pub struct Listener {
        /// Its name in the log and in metrics: a-z, 0-9, - and _; `mqtt` is the one of `[listen.mqtt]`.
        pub name: String = String::new(), if Required;
        /// What is spoken below MQTT.
        pub transport: Transport = Transport::Tcp, if Required;
        /// Address and port. Left out: loopback, at the port clients expect (1883 tcp, 8883 tls, 8083 ws, 8084 wss, UDP 14567
        /// quic). Anything but loopback is refused until clients can prove who they are and there are access rules.
        pub bind: Option<SocketAddr> = None;
        /// Path of the WebSocket. Requests for any other are answered 404.
        pub path: String = "/mqtt".into();
        /// Certificate chain (PEM), the node's own first. Needed for tls, wss and quic; a changed file is taken up by itself.
        pub cert: Option<PathBuf> = None;
        /// The key of that certificate (PEM).
        pub key: Option<PathBuf> = None;
        /// CA certificates (PEM) that client certificates are checked against. Whoever has one of them comes in.
        pub client_ca: Option<PathBuf> = None;
        /// Revocation list (PEM) of those CAs. Left out: a certificate is good until it expires.
        pub client_crl: Option<PathBuf> = None;
        /// Whether clients show a certificate. Left out: `required` when there is a `client_ca`, else `off`.
        pub client_certificate: Option<ClientCertificate> = None;
        /// Which name of the client certificate is the user name, in place of the one in CONNECT. A certificate without that
        /// name is refused.
        pub user_from: UserFrom = UserFrom::Cn;
        /// Whether clients without user name may connect. Left out: only while `bind` is a loopback address.
        pub anonymous: Option<bool> = None;
        /// Each connection begins with a PROXY protocol header (version 2), which says where the client is; without it the
        /// connection is closed. Whoever reaches the port can claim any address: open it to the proxy only.
        pub proxy_protocol: bool = false;
        /// Most connections of this listener at a time; left out: `limits.connections_max` bounds all together. Too few refuses
        /// devices; too many lets one listener take the places of the others.
        pub connections_max: Option<usize> = None, if Range(1, 10_000_000);
    }
}

choice! {
    /// What is spoken below MQTT.
    pub enum Transport {
        /// TCP.
        #[default]
        Tcp = "tcp",
        /// TLS 1.2 or 1.3.
        Tls = "tls",
        /// WebSocket.
        Ws = "ws",
        /// WebSocket over TLS.
        Wss = "wss",
        /// QUIC: one stream a client, ALPN `mqtt`.
        Quic = "quic",
    }
}

choice! {
    /// Whether clients show a certificate.
    pub enum ClientCertificate {
        /// They are not asked.
        #[default]
        Off = "off",
        /// They may.
        Optional = "optional",
        /// They must.
        Required = "required",
    }
}

choice! {
    /// Which name of a client certificate is the user name.
    pub enum UserFrom {
        /// The common name of its subject.
        #[default]
        Cn = "cn",
        /// Its first URI, for example `spiffe://plant/device/lamp-1`.
        Uri = "uri",
        /// None: the client logs in by name and password as well.
        None = "none",
    }
}

choice! {
    /// What an acknowledgement promises.
    pub enum Durability {
        /// It is on disk.
        #[default]
        Disk = "disk",
        /// It is in memory.
        Memory = "memory",
    }
}

section! {
    /// The HTTP API.
    pub struct ListenHttp {
        /// Address and port. Anything but loopback is refused until there is a `token_file`.
        pub bind: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 18080));
        /// File whose first line is the token that requests must bring as `Authorization: Bearer …`; at least 16 characters.
        /// Left out: no login, and only loopback addresses are served.
        pub token_file: Option<PathBuf> = None;
        /// Largest request body in bytes. Too small refuses shadow updates and publishes; too large lets each of
        /// `connections_max` clients claim that much memory.
        pub body_max_bytes: usize = 256 << 10, if Range(1_024, 64 << 20);
        /// Most connections at a time. Too few starves dashboards that poll; too many take file handles from devices.
        pub connections_max: usize = 256, if Range(1, 65_536);
    }
}

section! {
    /// The node's peers.
    pub struct Cluster {
        /// The cluster's name. A node only talks to nodes of the same name.
        pub name: String = "outpost".into();
        /// UDP address and port for QUIC between nodes. On loopback only nodes of the same machine reach it.
        pub bind: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 17447));
        /// Address and port at which peers reach this node, when it is not `bind`: `bind` is 0.0.0.0, NAT. Wrong: peers hear
        /// of this node but cannot dial it.
        pub advertise: Option<SocketAddr> = None;
        /// `host:port` of nodes to ask first. One that answers is enough; none means waiting to be called.
        pub seeds: Vec<String> = Vec::new();
        /// The cluster's CA certificate (PEM).
        pub ca: Option<PathBuf> = None;
        /// This node's certificate (PEM), issued by that CA.
        pub cert: Option<PathBuf> = None;
        /// The key of that certificate (PEM); readable by nobody else.
        pub key: Option<PathBuf> = None;
        /// The CA's key (PEM), only on nodes at which others may join. Whoever reads it can make nodes.
        pub ca_key: Option<PathBuf> = None;
        /// Whether the links to peers lose packets though they are not full, as radio and satellites do: then what arrives sets
        /// the speed, not what is lost (BBR instead of CUBIC). On a link that others use too it takes more than its share.
        pub lossy_links: bool = false;
    }
}

section! {
    /// Bounds. Every queue, table and buffer that a device can fill has one.
    pub struct Limits {
        /// Most MQTT connections at a time. Above the process's file handles, connects fail with EMFILE; too few refuses
        /// devices.
        pub connections_max: usize = 16_000, if Range(1, 10_000_000);
        /// Most connections of one listener that have not sent CONNECT yet. Too few refuses a fleet that comes back at once;
        /// too many lets a stranger hold sockets.
        pub pending_connect_max: usize = 1_024, if Range(1, 1_000_000);
        /// Seconds from accepting a connection to its CONNECT, TLS and WebSocket handshakes included. Too short cuts off slow
        /// radio links; too long helps slow-loris attacks.
        pub connect_timeout_s: u16 = 5, if Range(1, 300);
        /// Bytes taken from a connection until its CONNECT is complete, TLS and WebSocket handshakes included; after a TLS
        /// handshake at most half of them. Too few cuts off large wills and long certificate chains; too many lets each
        /// stranger claim that much memory.
        pub connect_bytes_max: usize = 8_192, if Range(1_024, 1 << 20);
        /// Most sessions, connected or kept. Full: a new client gets 0x97 (quota exceeded).
        pub sessions_max: usize = 100_000, if Range(1, 10_000_000);
        /// Most subscriptions of one session. Full: SUBACK says 0x97.
        pub subscriptions_max: usize = 1_000, if Range(1, 1_000_000);
        /// Most messages waiting for one session. Too few loses nothing but pushes back on publishers early (0x97); too many
        /// lets one absent client fill the disk.
        pub queue_messages_max: usize = 10_000, if Range(1, 10_000_000);
        /// Most bytes waiting for one session, whichever of the two is reached first.
        pub queue_bytes_max: usize = 16 << 20, if Range(1_024, 1 << 40);
        /// Most QoS 1 and 2 messages waiting for all sessions of this node together. Full: what is for a client that is away
        /// or behind is refused (0x97) or waits (3.1.1); clients that keep up are served. Too few and some absent clients
        /// shut out the others; too many and all of them together fill the disk.
        pub node_queue_messages_max: usize = 10_000_000, if Range(1, 1_000_000_000);
        /// Bytes of them, whichever of the two is reached first.
        pub node_queue_bytes_max: usize = 1 << 30, if Range(1_024, 1 << 50);
        /// Most messages waiting for one peer of the cluster. Full: what peers have durable subscribers for is refused (0x97) or
        /// waits. Too few and a short cut of the link stops publishers; too many and a peer that is gone fills the disk.
        pub outbox_messages_max: usize = 1_000_000, if Range(1, 1_000_000_000);
        /// Bytes of them, whichever of the two is reached first.
        pub outbox_bytes_max: usize = 256 << 20, if Range(1_024, 1 << 50);
        /// QoS 1 and 2 messages on their way to one client, whatever receive maximum it allows. One means a round trip a
        /// message; too many means long resends after each reconnect.
        pub inflight_max: u16 = 64, if Range(1, 65_535);
        /// QoS 1 and 2 messages one client may have unacknowledged: the receive maximum of CONNACK. One means a round trip a
        /// message; too many costs memory for each client, and a client of MQTT 5 that exceeds it is cut off with 0x93.
        pub receive_max: u16 = 20, if Range(1, 65_535);
        /// Topic aliases a client may use. Each is a topic kept in memory per connection; 0 turns them off.
        pub topic_alias_max: u16 = 10, if Range(0, 65_535);
        /// Topic aliases the node uses towards a client that keeps some. Each is a topic kept in memory per connection and looked
        /// through for each message; 0 sends every topic name in full.
        pub topic_alias_out_max: u16 = 16, if Range(0, 1_024);
        /// Longest keep-alive in seconds a client may ask for; longer ones and 0 (never) get this one. Too short wakes
        /// sleeping devices; too long keeps dead connections.
        pub keep_alive_s_max: u16 = 3_600, if Range(5, 65_535);
        /// Longest session expiry in seconds. Too short forgets devices on holiday; too long keeps queues of devices
        /// that will never return.
        pub session_expiry_s_max: u32 = 7 * 24 * 3_600, if Range(0, 0xffff_ffff);
        /// Most retained messages. Full: a new topic is refused with 0x97, known ones are still replaced.
        pub retained_max: usize = 100_000, if Range(0, 10_000_000);
        /// Most client ids of all nodes whose session is known to be at one of them. Full: a client that is new to the cluster
        /// has its session where it connects, and does not find it at another node; 0: none does. Each takes memory and
        /// a row on the disk of every node.
        pub directory_max: usize = 100_000, if Range(0, 10_000_000);
        /// Bytes waiting to be sent to one connection before the node stops reading for it. QoS 0 beyond a share of it is
        /// handled as `[[limits.overload]]` says: a third while the client keeps up, all of it after two seconds of lag.
        /// Too few costs system calls and drops bursts; too many lets slow readers claim memory.
        pub write_buffer_bytes_max: usize = 3 << 20, if Range(16_384, 256 << 20);
        /// Longest rest in microseconds between turns of the data plane when clients send fast: what comes meanwhile is served
        /// with one wake-up and one write a client. A rest is taken only when it promises four packets, is no longer than eight
        /// take, and not taken when clients wait for their answers. Shorter, or 0, serves each packet sooner and spends more
        /// CPU on each; longer keeps messages waiting for as long.
        pub gather_us_max: u32 = 200, if Range(0, 1_000);
        /// Plain TCP connections written to with one system call (`io_uring`, where the system allows it), four at least.
        /// Fewer: more calls; 0: each write is a call of its own; more: a hundred bytes each for the ring.
        pub sends_at_once_max: usize = 256, if Range(0, 4_096);
        /// What is done with QoS 0 messages that do not fit into a slow client's buffer.
        pub overload: Vec<OverloadRule> = Vec::new();
        /// Bytes accepted and not yet on disk before publishers are slowed down. Too few stalls on every sync; too many is
        /// memory lost to a slow card.
        pub store_backlog_bytes_max: usize = 32 << 20, if Range(1 << 20, 4 << 30);
        /// Bytes of memory that sessions, queues, buffers, retained messages, shadows and the store's backlog may take
        /// together. Left out: a quarter of what the process may have (its control group's limit, else the machine's).
        /// Too few slows publishers down and refuses messages that would have fitted; too many and the system kills the
        /// process. From 70 % on something is given up, see the guide on overload.
        pub memory_bytes_max: Option<usize> = None, if Range(1 << 20, 1 << 44);
        /// Messages a second agreed with each client; 0 is none. Who sends more than 1.2 times as many for 3 s is read with
        /// low priority until it keeps to them for as long. Too few punishes ordinary bursts that last.
        pub publish_rate: usize = 0, if Range(0, 10_000_000);
        /// Most messages a second taken from each client; 0 is no limit. Who sends more is read more slowly and TCP tells it;
        /// nothing is dropped. Too few holds honest devices back; too many lets one client take the node for itself.
        pub publish_rate_max: usize = 0, if Range(0, 10_000_000);
        /// The same in bytes of packets a second.
        pub publish_bytes_rate_max: usize = 0, if Range(0, 1 << 40);
        /// Free bytes of the disk below which QoS 1 and 2 that would have to be written are refused (0x97) or wait (3.1.1).
        /// Too few and deliveries stop with the disk full, for their ends are written too; too many is room nobody uses. 0
        /// waits for the first write that fails.
        pub disk_reserve_bytes: usize = 16 << 20, if Range(0, 1 << 40);
        /// Most new connections a second on each listener, after a burst of as many; 0 is no limit. More wait in the kernel's
        /// queue. Too few makes a fleet that comes back wait; too many and its handshakes take the node from those that are
        /// connected.
        pub connect_rate_max: usize = 2_000, if Range(0, 1_000_000);
        /// Most new connections a second from one address, after a burst of ten times as many; 0 is no limit. More are closed
        /// at once. Too few shuts out sites whose devices share an address.
        pub connect_rate_per_address_max: usize = 0, if Range(0, 1_000_000);
        /// Most shadows on this node. Full: an update that would create one is rejected with 429.
        pub shadows_max: usize = 100_000, if Range(1, 10_000_000);
        /// Shadows kept in memory, those used last; the others wait on disk. Fewer and busy ones are read again and again;
        /// more and each costs some two kilobytes, a large one 40.
        pub shadows_hot_max: usize = 2_048, if Range(1, 10_000_000);
        /// Largest state of a shadow in bytes, `desired` and `reported` together (AWS: 8 KiB). Updates that make it larger are
        /// rejected with 413. The same on all nodes: what one accepts the others keep.
        pub shadow_bytes_max: usize = 8_192, if Range(256, 30 << 10);
        /// Levels of objects and arrays in `desired` or `reported`, the section itself counted (AWS documents 5, 6 and 8).
        /// Deeper updates are rejected with 400.
        pub shadow_depth_max: usize = 6, if Range(1, 64);
        /// Shadow requests of one connection that may be under way at once (AWS: 10). More are rejected with 429, so that one
        /// client cannot keep the service to itself; too few refuses devices that do not wait for answers.
        pub shadow_in_flight_max: usize = 10, if Range(1, 10_000);
        /// Entries in the history of shadows, all together; 0 keeps none. More occupies some 300 bytes each, in memory and on
        /// disk; fewer and `outpost shadow why` knows less.
        pub shadow_history_max: usize = 4_096, if Range(0, 1_000_000);
        /// Entries in the history of one shadow. Fewer forgets sooner; more lets one busy shadow crowd the others out.
        pub shadow_history_each_max: usize = 32, if Range(1, 10_000);
        /// Hours for which a deleted shadow's version is remembered (AWS: 48): until then a new one of its name counts on,
        /// afterwards it begins with 1. Nodes that were away must be back sooner.
        pub shadow_deleted_keep_h: u32 = 48, if Range(1, 720);
    }
}

section! {
    /// Device shadows: who decides, and whose word counts.
    pub struct Shadows {
        /// Whether a node that cannot reach a shadow's home refuses (500) updates of `desired` and deletes. `true`: nothing is
        /// decided twice, and a cut stops people from steering; `false`: both sides of a cut can be written and are merged.
        /// The same on all nodes.
        pub strict: bool = false;
        /// Whose word counts where `desired` and `reported` differ, at most 256 rules; the first that matches decides.
        pub policy: Vec<ShadowPolicy> = Vec::new();
    }
}

section! {
    /// Whose word counts for some keys of some things.
    pub struct ShadowPolicy {
        /// Names of things; `*` is any number of characters.
        pub things: String = "*".into();
        /// Keys with dots between them; `*` is one key, a last `#` is all below.
        pub path: String = String::new(), if Required;
        /// `controlled`: the delta holds what differs, as AWS does. `reported_only`: never a delta, and `desired` is refused.
        /// `local_override`: once the device has shown what was desired, a later change at the device stands.
        pub policy: PolicyKind = PolicyKind::Controlled, if Required;
        /// How long a change at the device stands under `local_override`, in seconds; 0: until `desired` is written again.
        pub expiry_s: usize = 0, if Range(0, 31_536_000);
    }
}

choice! {
    /// Whose word counts.
    pub enum PolicyKind {
        /// What is desired.
        #[default]
        Controlled = "controlled",
        /// What the device says.
        ReportedOnly = "reported_only",
        /// Whoever turned the knob last.
        LocalOverride = "local_override",
    }
}

section! {
    /// What is done with QoS 0 messages that do not fit into a slow client's buffer, by topic. The first rule whose filter
    /// matches decides; none: `drop_new`.
    pub struct OverloadRule {
        /// Topic filter.
        pub filter: String = "#".into(), if Required;
        /// `drop_new` drops the message; `drop_old` lets the newest 256 wait; `block` lets it wait and reads its publisher
        /// more slowly meanwhile; `disconnect` closes the client's connection (0x97).
        pub policy: OverloadPolicy = OverloadPolicy::DropNew, if Required;
    }
}

choice! {
    /// What is done with what does not fit.
    pub enum OverloadPolicy {
        /// It is dropped.
        #[default]
        DropNew = "drop_new",
        /// It waits, and the oldest that waits is dropped.
        DropOld = "drop_old",
        /// It waits, and so does its publisher.
        Block = "block",
        /// The client is disconnected.
        Disconnect = "disconnect",
    }
}

section! {
    /// Who may connect, and what they may do.
    pub struct Security {
        /// People and devices that log in by name and password.
        pub user: Vec<User> = Vec::new();
        /// Access rules; of those that fit, the most specific filter decides, and deny before allow. None fits: refused.
        /// Without any rule a node on loopback allows everything, and any other address is refused.
        pub acl: Vec<Acl> = Vec::new();
        /// What clients that ask (MQTT 5, request response information) are told to begin their response topics with, when a
        /// rule lets them read below it. `%c` stands for the client id, `%u` for the user name. Left out: nothing is told.
        pub response_information: Option<String> = None;
        /// Whether a payload that its publisher says is UTF-8 text (MQTT 5, payload format indicator) is looked at and, when
        /// it is not, refused with 0x99. It costs a look at each byte of such payloads.
        pub payload_format_check: bool = false;
    }
}

section! {
    /// Somebody who logs in by name and password.
    pub struct User {
        /// The user name in CONNECT.
        pub name: String = String::new(), if Required;
        /// Argon2 hash of the password in PHC form, `$argon2id$v=19$…`. Never the password itself.
        pub password: Option<String> = None;
        /// File whose first line is that hash, and whose second line, if any, is what `scram` is. One of the two must be given.
        pub password_file: Option<PathBuf> = None;
        /// Verifier of the same password for clients that log in by SCRAM-SHA-256 (MQTT 5, §4.12), in the form of RFC 5803:
        /// `SCRAM-SHA-256$15000:SALT$STORED_KEY:SERVER_KEY`. Left out: this user cannot log in by it.
        pub scram: Option<String> = None;
        /// Roles that access rules can name as `role:NAME`.
        pub roles: Vec<String> = Vec::new();
    }
}

section! {
    /// One access rule.
    pub struct Acl {
        /// Whether it allows or denies.
        pub effect: Effect = Effect::Allow, if Required;
        /// Whom it is about: `everyone` (who has a name), `anonymous`, `user:NAME`, `client:ID` or `role:NAME`. In names `*` stands for
        /// any run of characters.
        pub who: String = "everyone".into();
        /// What it is about: `read` is subscribing and receiving, `write` is publishing.
        pub access: Access = Access::ReadWrite;
        /// Topic filter. `%c` stands for the client id, `%u` for the user name.
        pub filter: String = String::new(), if Required;
    }
}

choice! {
    /// What a rule is about.
    pub enum Access {
        /// Subscribing and receiving.
        Read = "read",
        /// Publishing.
        Write = "write",
        /// Both.
        #[default]
        ReadWrite = "readwrite",
    }
}

choice! {
    /// What a rule says.
    pub enum Effect {
        /// Permits.
        #[default]
        Allow = "allow",
        /// Forbids.
        Deny = "deny",
    }
}

section! {
    /// Lamps, relays and buttons on this machine.
    pub struct Hardware {
        /// A device: it publishes its state, retained, and takes commands, like a device of the network.
        pub device: Vec<Device> = Vec::new();
    }
}

section! {
    /// One device on a GPIO line.
    pub struct Device {
        /// Its name, one level of its topics; unique on the node.
        pub name: String = String::new(), if Required;
        /// What it is: `led`, `relay`, `button`.
        pub driver: String = String::new(), if Required;
        /// What its line belongs to: a GPIO chip of this machine, or memory, for trying things out.
        pub board: Board = Board::Linux;
        /// The GPIO chip of a Linux board.
        pub chip: PathBuf = PathBuf::from("/dev/gpiochip0");
        /// The line's offset on the chip, as `gpioinfo` counts. The wrong one switches something else.
        pub line: u32 = 0, if Required;
        /// A low voltage means "on".
        pub active_low: bool = false;
        /// The resistor of an input. None and nothing outside: the input reads noise.
        pub bias: Bias = Bias::AsIs;
        /// Milliseconds an input must be stable before it counts. 0: every bounce of a contact is an event; too great: short
        /// presses are missed.
        pub debounce_ms: u32 = 10, if Range(0, 10_000);
        /// What an output is when the node starts, and when it stops in order.
        pub initial: bool = false;
        /// The topics are `<topic_prefix>/<name>/state` and `…/set`.
        pub topic_prefix: String = "hw".into();
    }
}

choice! {
    /// What a line belongs to.
    pub enum Board {
        /// A GPIO chip of this machine.
        #[default]
        Linux = "linux",
        /// Memory.
        Simulated = "simulated",
    }
}

choice! {
    /// The resistor of an input.
    pub enum Bias {
        /// As the board or the boot loader left it.
        #[default]
        AsIs = "as_is",
        /// To the supply.
        PullUp = "pull_up",
        /// To ground.
        PullDown = "pull_down",
        /// None.
        Disabled = "disabled",
    }
}

section! {
    /// What the node says about itself, on standard error.
    pub struct Log {
        /// `off`, `error`, `warn`, `info`, `debug` or `trace` for Outpost's own records (libraries only warn), or directives like
        /// `info,outpost_cluster=debug`. `RUST_LOG` goes before it. `trace` writes a line a packet.
        pub level: String = "info".into();
        /// One line a record: for people, or one JSON object.
        pub format: LogFormat = LogFormat::Text;
    }
}

choice! {
    /// How a log line is written.
    pub enum LogFormat {
        /// For people.
        #[default]
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}
