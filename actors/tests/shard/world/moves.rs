//! What stories of clients that move between nodes need of the world: half-done syncs, answers read one by one.

use outpost_mqtt::packet::{Connack, Packet, PacketId};

use super::{Client, World};

impl World {
    /// What a node has submitted becomes durable there, and what follows from that is done.
    pub fn sync_one(&mut self, node: usize) {
        let lsn = self.nodes[node].store.sync_all();
        self.nodes[node].shard.synced(lsn, self.now);
        self.pump();
    }

    /// A client has taken a QoS 2 message, whatever became of the answer.
    pub fn note_taken(&mut self, name: &str, id: PacketId) {
        self.taken.entry(name.to_owned()).or_default().insert(id);
    }

    /// The packet ids of its publishes that were accepted.
    pub fn accepted(&mut self, client: Client) -> Vec<u16> {
        let ack = |packet: Packet| match packet {
            Packet::Puback(ack) | Packet::Pubrec(ack) if !ack.reason.is_error() => {
                Some(ack.packet_id.get())
            }
            _ => None,
        };
        self.take(client).into_iter().filter_map(ack).collect()
    }

    /// Its session is another one: what it knew of the former is no more.
    pub fn forget_taken(&mut self, name: &str) {
        self.taken.remove(name);
    }

    /// The answer to a CONNECT, if it has come.
    pub fn connack(&mut self, client: Client) -> Option<Connack> {
        match self.wires[client.0].packets.pop_front()? {
            Packet::Connack(connack) => Some(*connack),
            other => panic!("CONNACK comes first, got {other:?}"),
        }
    }

    /// From now on nothing arrives over links; they seem to be up.
    pub fn lose_frames(&mut self) {
        self.link_up = false;
        self.in_flight.clear();
    }
}
