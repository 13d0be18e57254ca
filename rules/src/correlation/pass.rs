//! What event time has passed: windows that are decided, groups that are dropped.
//!
//! As many of them may be over at once as there are groups. So a row lets a few be decided or dropped, in an order that is that of
//! the rows alone, and event time is held back until the others had their turn.

use crate::correlation::alert::Told;
use crate::correlation::clock::{Queue, Timer, Timers};
use crate::correlation::entry::EventId;
use crate::correlation::feed::Firing;
use crate::correlation::group::{Fed, Group, Terms};
use crate::correlation::read::Batch;
use crate::correlation::run::{Correlations, Row};
use crate::correlation::set::CorrelationSet;

impl Correlations {
    /// Decides the windows of a tenant that are over, in the order of their ends, and drops groups that are of no use any more, as
    /// many as this row still lets.
    ///
    /// One window after the other, however far event time went on at once: what one fires is an event of its end for the
    /// correlations that refer to it, whose own windows may be over by now too.
    pub(super) fn pass(&mut self, set: &CorrelationSet, batch: &mut Batch<'_>, tenant: u32, out: &mut Row<'_>) {
        let mut work = Vec::new();
        while let Some((sources, timer)) = self.next_over(tenant) {
            self.clock.hold(tenant, timer.at);
            let Some(left) = self.allowed.checked_sub(1) else {
                self.clock.arm(tenant);
                return;
            };
            self.allowed = left;
            self.clock.closing(tenant, sources).into_iter().for_each(Timers::pop);
            let Some(number) = self.buckets.get(timer.bucket as usize).map(|bucket| bucket.correlation) else {
                continue;
            };
            let decided = self.step(set, (number, tenant), |own| own.decide(set, tenant, sources, timer, out));
            if let Some(firing) = decided
                && let Some(correlation) = set.correlations.get(number as usize)
            {
                self.follow(set, correlation, batch, &firing, &mut work);
                self.run(set, batch, tenant, &mut work, out);
            }
        }
        self.clock.hold(tenant, i64::MAX);
        self.expire(set, tenant);
        if self.allowed == 0 || self.clock.is_doubted() {
            self.clock.arm(tenant);
        }
    }

    /// The first window of a tenant that is over and not decided yet, with the sources that its group waits for. Timers of what is
    /// gone are dropped on the way.
    fn next_over(&mut self, tenant: u32) -> Option<(u64, Timer)> {
        loop {
            let queues = &self.clock.tenants.get(tenant as usize)?.queues;
            let over = |queue: &Queue| {
                let timer = queue.closing.peek()?;
                (timer.at <= self.clock.reached(tenant, queue.sources)).then_some((timer, queue.sources))
            };
            let (timer, sources) = queues.iter().filter_map(over).min()?;
            if self.waiting(sources, timer).is_some() {
                return Some((sources, timer));
            }
            self.clock.closing(tenant, sources)?.pop();
        }
    }

    /// The group of a timer, if it still waits for that.
    fn waiting(&self, sources: u64, timer: Timer) -> Option<&Group> {
        let group = self.buckets.get(timer.bucket as usize)?.get(timer.slot)?;
        (group.number == timer.number && group.sources == sources && group.armed == timer.at).then_some(group)
    }

    /// Takes the window that a timer is for out of its group; what it fired.
    fn decide(
        &mut self,
        set: &CorrelationSet,
        tenant: u32,
        sources: u64,
        timer: Timer,
        out: &mut Row<'_>,
    ) -> Option<Firing> {
        let step = self.costs.begin();
        let bucket = self.buckets.get_mut(timer.bucket as usize)?;
        let number = bucket.correlation;
        let correlation = set.correlations.get(number as usize)?;
        let terms = Terms::new(correlation, self.events_max);
        let group = bucket.get_mut(timer.slot)?;
        let mut fed = Fed::default();
        let (window, fire) = group.close(&terms, &mut fed)?;
        self.counts.closed += 1;
        self.counts.fired += u64::from(fire.is_some());
        let org_id = &*self.clock.tenants.get(tenant as usize)?.org_id;
        let fire = fire.filter(|_| !self.off.is_off(org_id, &correlation.head.id));
        let firing = fire.map(|fire| {
            let completing = &window.last.1;
            let told = Told::of((correlation, number, org_id), group, (&fire, completing));
            out.tell(set, &self.off, told);
            let id = group.window(&fire).last().map_or_else(|| EventId::new(""), |entry| entry.id.clone());
            let (key, completing) = (group.key.clone(), completing.clone());
            Firing { tenant, key, time: timer.at, sources, id, origin: None, completing }
        });
        group.settle(&terms);
        let wait = group.wait(&terms, false);
        group.armed = wait.at;
        let (before, after) = bucket.recount(timer.slot, &correlation.definition);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.counts.looked_at += fed.looked_at;
        self.schedule(tenant, sources, wait.is_last, Timer { at: wait.at, ..timer });
        self.costs.end(&step, (number, tenant), false);
        firing
    }

    /// Drops groups that no event can concern any more, in the order in which that came to be.
    fn expire(&mut self, set: &CorrelationSet, tenant: u32) {
        while self.allowed > 0 && !self.clock.is_doubted() {
            let Some(own) = self.clock.tenants.get(tenant as usize) else { return };
            let over = |queue: &Queue| {
                let timer = queue.expiring.peek()?;
                (timer.at <= self.clock.mark(tenant, queue.sources)).then_some((timer, queue.sources))
            };
            let Some((timer, sources)) = own.queues.iter().filter_map(over).min() else { return };
            if let Some(queue) = self.clock.queue(tenant, sources) {
                queue.expiring.pop();
            }
            // What is left of groups that are gone is no step: it is not there any more after a restart.
            self.allowed -= u64::from(self.outlived(set, tenant, sources, timer));
        }
    }

    /// Drops the group of a timer, or waits on when there were events since. Says whether there was something to do.
    fn outlived(&mut self, set: &CorrelationSet, tenant: u32, sources: u64, timer: Timer) -> bool {
        if self.waiting(sources, timer).is_none() {
            return false;
        }
        let Some(bucket) = self.buckets.get_mut(timer.bucket as usize) else { return false };
        let Some(correlation) = set.correlations.get(bucket.correlation as usize) else { return false };
        let terms = Terms::new(correlation, self.events_max);
        let Some(group) = bucket.get_mut(timer.slot) else { return false };
        let wait = group.wait(&terms, correlation.eager);
        if !wait.is_last {
            // Another window was opened, whose end is waited for.
            return false;
        }
        if wait.at > timer.at {
            group.armed = wait.at;
            self.schedule(tenant, sources, true, Timer { at: wait.at, ..timer });
        } else {
            self.remove(timer.bucket, timer.slot);
            self.release(timer.bucket);
        }
        true
    }
}
