//! When rules last decided about a packet: counters are looked at now and then, and when one
//! has moved is remembered. The kernel keeps no times, which would cost every packet.
//! Never counts anything itself.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::ClientId;
use crate::time::Moment;

/// What was seen of one client's counters.
#[derive(Debug, Default)]
struct Seen {
    generation: u32,
    /// Packets at the last look, and when there were more than before.
    counters: Vec<(u64, Option<Moment>)>,
}

/// What was seen of all counters.
#[derive(Debug, Default)]
pub(super) struct Hits {
    clients: BTreeMap<ClientId, Seen>,
}

impl Hits {
    /// Takes in the counters of all clients, each in an order that stays the same. With each
    /// generation of a client they begin anew; a client that has none is forgotten.
    pub(super) fn look(
        &mut self,
        counters: BTreeMap<ClientId, Vec<u64>>,
        generation_of: impl Fn(ClientId) -> Option<u32>,
        now: Moment,
    ) {
        for (client, packets) in counters {
            if let Some(generation) = generation_of(client) {
                self.look_at(client, generation, packets, now);
            }
        }
        self.clients.retain(|client, _| generation_of(*client).is_some());
    }

    fn look_at(&mut self, client: ClientId, generation: u32, packets: Vec<u64>, now: Moment) {
        let seen = self.clients.entry(client).or_default();
        if seen.generation != generation {
            *seen = Seen { generation, counters: Vec::new() };
        }
        for (index, packets) in packets.into_iter().enumerate() {
            match seen.counters.get_mut(index) {
                Some((before, last)) if *before != packets => {
                    (*before, *last) = (packets, Some(now));
                }
                Some(_) => {}
                None => seen.counters.push((packets, (packets > 0).then_some(now))),
            }
        }
    }

    /// How long ago a counter had moved when it was looked at, if it ever has.
    pub(super) fn age(&self, client: ClientId, index: usize, now: Moment) -> Option<Duration> {
        let (_, last) = self.clients.get(&client)?.counters.get(index)?;
        last.map(|last| now.since(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_moves_is_as_old_as_the_look_that_saw_it() {
        let client = ClientId { vif: 1, address: [10, 137, 0, 12].into() };
        let at = |second| Moment::after_boot(Duration::from_secs(second));
        let mut hits = Hits::default();
        let mut look = |generation, packets: [u64; 2], second| {
            hits.look([(client, packets.into())].into(), |_| Some(generation), at(second));
            [0, 1].map(|index| hits.age(client, index, at(100)).map(|age| age.as_secs()))
        };
        assert_eq!(look(1, [0, 0], 10), [None, None]);
        assert_eq!(look(1, [0, 5], 20), [None, Some(80)]);
        assert_eq!(look(1, [1, 5], 30), [Some(70), Some(80)]);
        assert_eq!(look(1, [2, 5], 40), [Some(60), Some(80)]);
        assert_eq!(look(2, [0, 5], 50), [None, Some(50)]);
        hits.look(BTreeMap::new(), |_| None, at(60));
        assert_eq!(hits.age(client, 1, at(100)), None);
    }
}
