//! The keys of `[[bridge]]`, as [`super::keys`] declares the others.

use std::path::PathBuf;

use super::schema::Rule::{Range, Required};
use super::schema::{choice, section};

section! {
    /// A bridge to another MQTT broker.
    pub struct Bridge {
        /// Its name, of 1 to 63 of a-z, 0-9 and -. Its queue belongs to it: another name is another bridge, and the queue of
        /// the old one is given up.
        pub name: String = String::new(), if Required;
        /// The other broker: `mqtt://host:1883` or, with TLS, `mqtts://host:8883`. The ports may be left out.
        pub address: String = String::new(), if Required;
        /// What crosses.
        pub topic: Vec<BridgeTopic> = Vec::new();
        /// What the other broker speaks. With 3.1.1 messages lose their properties, and loops are harder to see.
        pub protocol_version: BridgeProtocol = BridgeProtocol::Mqttv50;
        /// The client id there, unique at that broker. Left out: `<node.name>.<name>`. Two clients of one id throw each other out.
        pub remote_clientid: Option<String> = None;
        /// The user name there.
        pub remote_username: Option<String> = None;
        /// File whose first line is the password; read at each attempt to connect.
        pub remote_password_file: Option<PathBuf> = None;
        /// CA certificates (PEM) to trust. Left out, with `mqtts://`: those of the system.
        pub cafile: Option<PathBuf> = None;
        /// The certificate (PEM) to show.
        pub certfile: Option<PathBuf> = None;
        /// The key of that certificate (PEM).
        pub keyfile: Option<PathBuf> = None;
        /// Takes any certificate of the other broker, so anybody between the two can read and change everything. For tests.
        pub insecure: bool = false;
        /// Begins with an empty session there at each link: what the other broker had for us while the link was down is lost.
        pub cleansession: bool = false;
        /// Seconds after which the other broker may take us for gone.
        pub keepalive_interval_s: u16 = 60, if Range(5, 65_535);
        /// Seconds without a word from the other broker, pings included, until the link is taken for dead. Too short cuts
        /// slow links; too long keeps sending into nothing. Pings go out each third of it while nothing is heard.
        pub link_timeout_s: u16 = 3, if Range(1, 3_600);
        /// Seconds to wait after the first failure; doubled with each further one, and spread by chance.
        pub restart_timeout_min_s: u16 = 1, if Range(1, 3_600);
        /// Seconds to wait at most. Too short knocks at a closed door; too long notices late that it is open.
        pub restart_timeout_max_s: u16 = 30, if Range(1, 3_600);
        /// Tells a 3.1.1 broker that this is a bridge, as mosquitto does, so that it does not send back what we sent it. When
        /// it does not take that, the next attempt goes without.
        pub try_private: bool = true;
        /// Messages sent and not acknowledged. Too few waits for each round trip; too many are sent again after each lost link.
        pub inflight_max: u16 = 64, if Range(1, 65_535);
        /// Bytes a second on a good link; less with a slow one. 0: as fast as it goes. After an outage a backlog goes at this.
        pub rate_bytes_max: usize = 10_000_000, if Range(0, 1 << 40);
        /// Keeps the retain flag on what goes out.
        pub outgoing_retain: bool = true;
        /// Keeps `$SYS/broker/connection/<name>/state` at 1 while the link is up and at 0 while it is not, retained.
        pub notifications: bool = true;
        /// Does not do so at the other broker too, under the client id there. Many brokers let nobody write below $SYS.
        pub notifications_local_only: bool = true;
    }
}

section! {
    /// Topics that cross a bridge. The first entry that fits a topic decides.
    pub struct BridgeTopic {
        /// Topic filter, without the prefixes. Empty: the prefixes are whole topics.
        pub pattern: String = String::new(), if Required;
        /// Which way.
        pub direction: BridgeDirection = BridgeDirection::Out;
        /// Messages cross with at most this QoS. 0: what is sent while the link is down is lost.
        pub qos: u16 = 1, if Range(0, 2);
        /// What the topics begin with on this node.
        pub local_prefix: String = String::new();
        /// What they begin with at the other broker.
        pub remote_prefix: String = String::new();
    }
}

choice! {
    /// Which way messages cross a bridge.
    pub enum BridgeDirection {
        /// From here to the other broker.
        #[default]
        Out = "out",
        /// From the other broker to here.
        In = "in",
        /// Either way.
        Both = "both",
    }
}

choice! {
    /// What the other broker of a bridge speaks.
    pub enum BridgeProtocol {
        /// MQTT 5.
        #[default]
        Mqttv50 = "mqttv50",
        /// MQTT 3.1.1.
        Mqttv311 = "mqttv311",
    }
}
