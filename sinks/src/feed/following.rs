//! A subscriber's way through the alerts of all nodes: a [`Subscription`] for each, whose alerts are told as they come.
//!
//! The alerts of a node come in the order of its `seq`, each once. Alerts of different nodes have no order of their own: they are
//! told as they arrive. Where a subscriber is, is therefore a position in each node, which every frame says:
//! `"after":"<node>:<seq>,<node>:<seq>"`. It may resume with that at any node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tidegate_pipeline::LogReader;
use tokio::sync::watch;
use tokio::time::Instant;

use super::filter::Filter;
use super::subscription::{Broken, Start, Subscription, Told};
use super::tail::Tail;

/// Before alerts of a node that could not be read are asked for again.
const PAUSE: Duration = Duration::from_millis(500);

/// Another node.
#[derive(Clone)]
pub struct Peer {
    /// Its name: letters, digits, `_` and `-`.
    pub node: Arc<str>,
    /// Its alerts. Reading may fail for a while.
    pub log: Arc<dyn LogReader>,
    /// It appeared while this node was looking: nobody here has missed anything of it yet.
    pub new: bool,
}

/// This node among others.
#[derive(Clone)]
pub struct Peers {
    /// The name of this node.
    pub own: Arc<str>,
    /// The others; `None` until they were looked for.
    pub others: watch::Receiver<Option<Arc<Vec<Peer>>>>,
}

/// Where a subscriber is, node by node.
pub(super) type Positions = BTreeMap<Arc<str>, i64>;

/// Where a subscriber starts in the nodes of which it said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// With the next alert.
    Now,
    /// With the first that there is.
    All,
}

/// Makes the subscription of a peer.
pub(super) type Subscribe = Box<dyn Fn(&Peer, Start, Filter) -> Subscription + Send>;

/// One subscriber, who sees the alerts of one node or of all.
pub(super) struct Following {
    own: Subscription,
    others: Option<Others>,
}

struct Others {
    peers: Peers,
    positions: Positions,
    elsewhere: Elsewhere,
    /// The others were looked for since this subscriber came.
    looked: bool,
    followed: Vec<Followed>,
    subscribe: Subscribe,
}

struct Followed {
    node: Arc<str>,
    subscription: Subscription,
    paused: Option<Instant>,
}

/// What came first.
enum Came {
    Own(Result<Vec<Told>, Broken>),
    Other(usize, Result<Vec<Told>, Broken>),
    Changed,
}

impl Following {
    /// Follows this node alone.
    pub(super) fn alone(own: Subscription) -> Self {
        Self { own, others: None }
    }

    /// Follows this node and all others, from these positions on.
    pub(super) fn all(
        own: Subscription,
        peers: Peers,
        mut positions: Positions,
        elsewhere: Elsewhere,
        subscribe: Subscribe,
    ) -> Self {
        positions.insert(peers.own.clone(), own.position());
        let followed = Vec::new();
        let mut others = Others { peers, positions, elsewhere, looked: false, followed, subscribe };
        others.take_up(&own.filter);
        Self { own, others: Some(others) }
    }

    /// Sets what is wanted from now on.
    pub(super) fn set_filter(&mut self, filter: Filter) {
        for followed in self.others.iter_mut().flat_map(|others| &mut others.followed) {
            followed.subscription.filter = filter.clone();
        }
        self.own.filter = filter;
    }

    /// Waits for what comes next; never empty. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Vec<Told>, Broken> {
        loop {
            let Some(others) = &mut self.others else { return self.own.next().await };
            let changed = others.peers.others.changed();
            let came = tokio::select! {
                told = self.own.next() => Came::Own(told),
                (at, told) = next_of(&mut others.followed) => Came::Other(at, told),
                changed = changed => match changed {
                    Ok(()) => Came::Changed,
                    // Nobody looks for others any more: the server is ending, which the own log says.
                    Err(_) => Came::Own(self.own.next().await),
                },
            };
            match came {
                Came::Own(told) => {
                    let node = others.peers.own.clone();
                    return told.map(|told| others.told(&node, told));
                }
                Came::Other(at, told) => {
                    if let Some(told) = others.came(at, told) {
                        return Ok(told);
                    }
                }
                Came::Changed => others.take_up(&self.own.filter),
            }
        }
    }
}

/// What comes next of any other node; never ends without one.
async fn next_of(followed: &mut [Followed]) -> (usize, Result<Vec<Told>, Broken>) {
    let waiting: Vec<BoxFuture<'_, Result<Vec<Told>, Broken>>> =
        followed.iter_mut().map(|followed| followed.next().boxed()).collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    let (told, at, _) = select_all(waiting).await;
    (at, told)
}

impl Others {
    fn came(&mut self, at: usize, told: Result<Vec<Told>, Broken>) -> Option<Vec<Told>> {
        let followed = self.followed.get_mut(at)?;
        let node = followed.node.clone();
        match told {
            Ok(told) => Some(self.told(&node, told)),
            Err(Broken::Unreadable(reason)) => {
                tracing::debug!(reason, node = &*node, "alerts of another node cannot be read now");
                followed.paused = Some(Instant::now() + PAUSE);
                None
            }
            Err(Broken::LogClosed) => {
                self.followed.remove(at);
                None
            }
        }
    }

    /// Takes up nodes that appeared, and lets go of those that are gone.
    fn take_up(&mut self, filter: &Filter) {
        let Some(peers) = self.peers.others.borrow_and_update().clone() else { return };
        self.followed.retain(|followed| peers.iter().any(|peer| peer.node == followed.node));
        for peer in peers.iter() {
            if self.followed.iter().any(|followed| followed.node == peer.node) {
                continue;
            }
            let first = Start::At(peer.log.bounds().first);
            let start = match (self.positions.get(&peer.node), self.elsewhere) {
                (Some(position), _) => Start::At(u64::try_from(position.saturating_add(1)).unwrap_or(0)),
                (None, Elsewhere::All) => first,
                (None, Elsewhere::Now) if peer.new && self.looked => first,
                (None, Elsewhere::Now) => Start::Now,
            };
            let subscription = (self.subscribe)(peer, start, filter.clone());
            self.positions.entry(peer.node.clone()).or_insert_with(|| subscription.position());
            self.followed.push(Followed { node: peer.node.clone(), subscription, paused: None });
        }
        self.looked = true;
    }

    /// What is told, with the node and with where the subscriber is then.
    fn told(&mut self, node: &Arc<str>, told: Vec<Told>) -> Vec<Told> {
        let place = |told: Told| {
            let position = match &told {
                Told::Alert { seq, .. } => i64::try_from(*seq).unwrap_or(i64::MAX),
                Told::Gap { resume_after, .. } => *resume_after,
            };
            if let Some(known) = self.positions.get_mut(node) {
                *known = position.max(*known);
            }
            told.placed(node, &token(&self.positions))
        };
        told.into_iter().map(place).collect()
    }
}

impl Followed {
    async fn next(&mut self) -> Result<Vec<Told>, Broken> {
        if let Some(until) = self.paused {
            tokio::time::sleep_until(until).await;
            self.paused = None;
        }
        self.subscription.next().await
    }
}

/// Positions as clients say them.
fn token(positions: &Positions) -> Arc<str> {
    let positions: Vec<String> = positions.iter().map(|(node, seq)| format!("{node}:{seq}")).collect();
    positions.join(",").into()
}

/// The tails of the other nodes, each read once for all subscribers.
#[derive(Default)]
pub(super) struct PeerTails {
    tails: parking_lot::Mutex<BTreeMap<Arc<str>, Arc<Tail>>>,
}

impl PeerTails {
    /// The tail of a node that is there now; those of nodes that are gone are let go.
    pub(super) fn of(&self, peer: &Peer, there: &[Peer], cache_bytes_max: usize) -> Arc<Tail> {
        let mut tails = self.tails.lock();
        tails.retain(|node, _| there.iter().any(|peer| peer.node == *node));
        let known = tails.get(&peer.node).filter(|tail| Arc::ptr_eq(tail.log(), &peer.log));
        if let Some(tail) = known {
            return tail.clone();
        }
        let tail = Arc::new(Tail::new(peer.log.clone(), cache_bytes_max));
        tails.insert(peer.node.clone(), tail.clone());
        tail
    }
}
