//! What event time has passed: windows that are decided, groups that are dropped.

use crate::correlation::clock::Timer;
use crate::correlation::entry::EventId;
use crate::correlation::group::{Fed, Terms};
use crate::correlation::read::Batch;
use crate::correlation::run::{Correlations, Fired, Firing, raised};
use crate::correlation::set::CorrelationSet;

impl Correlations {
    /// Decides the windows of a tenant that are over, in the order of their ends, and drops groups that are of no use any more, so
    /// many at most.
    pub(super) fn pass(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        tenant: u32,
        expired_max: usize,
        (row, before, out): (usize, bool, &mut Vec<Fired>),
    ) {
        while let Some(moment) = self.next_over(tenant) {
            self.moment = moment;
            let mut fired = self.close(set, tenant);
            fired.sort_by(|left, right| (left.correlation, &left.key).cmp(&(right.correlation, &right.key)));
            let mut work = Vec::new();
            for mut firing in fired {
                out.extend(firing.alert.take().map(|alert| Fired { row, before, alert }));
                let Some(correlation) = set.correlations.get(firing.correlation as usize) else { continue };
                self.follow(set, correlation, batch, &firing, &mut work);
                self.run(set, batch, tenant, &mut work, (row, before, out));
            }
        }
        self.moment = i64::MAX;
        self.expire(set, tenant, expired_max);
    }

    /// The first moment at which windows of a tenant are over that were not decided yet.
    pub(super) fn next_over(&self, tenant: u32) -> Option<i64> {
        let queues = &self.clock.tenants.get(tenant as usize)?.queues;
        let first = queues.iter().filter_map(|queue| {
            let at = queue.closing.peek()?.at;
            (at <= self.clock.mark(tenant, queue.sources)).then_some(at)
        });
        first.min()
    }

    /// Takes the windows that are over at this moment out of their groups; those that fired. One moment after the other, however
    /// far event time went on at once: what a window fires is an event of its end for the correlations that refer to it, whose
    /// own windows may be over by now too.
    fn close(&mut self, set: &CorrelationSet, tenant: u32) -> Vec<Firing> {
        let mut fired = Vec::new();
        let mut at = 0;
        while let Some(queue) = self.clock.tenants.get(tenant as usize).and_then(|tenant| tenant.queues.get(at)) {
            let sources = queue.sources;
            let mut next = queue.closing.peek();
            at += 1;
            if next.is_none_or(|timer| timer.at > self.moment.min(self.clock.mark(tenant, sources))) {
                continue;
            }
            while let Some(timer) = next.filter(|timer| timer.at <= self.moment) {
                if let Some(queue) = self.clock.queue(tenant, sources) {
                    queue.closing.pop();
                }
                self.decide(set, tenant, sources, timer, &mut fired);
                next = self.clock.queue(tenant, sources).and_then(|queue| queue.closing.peek());
            }
        }
        fired
    }

    fn decide(&mut self, set: &CorrelationSet, tenant: u32, sources: u64, timer: Timer, fired: &mut Vec<Firing>) {
        let step = self.costs.begin();
        let Some(bucket) = self.buckets.get_mut(timer.bucket as usize) else { return };
        let Some(correlation) = set.correlations.get(bucket.correlation as usize) else { return };
        let terms = Terms::new(correlation, self.events_max);
        let number = bucket.correlation;
        let Some(group) = bucket.get_mut(timer.slot) else { return };
        if group.number != timer.number || group.sources != sources || group.armed != timer.at {
            return;
        }
        let mut fed = Fed::default();
        while group.deadline(&terms, false) <= self.moment {
            let Some((window, fire)) = group.close(&terms, &mut fed) else { break };
            self.counts.closed += 1;
            let Some(fire) = fire else { continue };
            self.counts.fired += 1;
            let end = window.start.saturating_add(correlation.definition.span.0);
            let completing = (*window.last.1).clone();
            let org_id =
                self.clock.tenants.get(tenant as usize).map(|tenant| tenant.org_id.clone()).unwrap_or_default();
            if self.off.is_off(&org_id, &correlation.head.id) {
                continue;
            }
            let firing = Firing {
                correlation: number,
                tenant,
                key: group.key.clone(),
                time: end,
                sources,
                id: group.window(&fire).last().map_or_else(|| EventId::new(""), |entry| entry.id.clone()),
                origin: None,
                alert: raised(set, number, (&org_id, &self.off), group, (&fire, &completing), self.event_ids_max),
                completing,
            };
            fired.push(firing);
        }
        group.settle(&terms);
        let open = !group.windows.is_empty();
        let at = group.deadline(&terms, false);
        group.armed = if open { at } else { i64::MAX };
        let (before, after) = bucket.recount(timer.slot, &correlation.definition);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.counts.looked_at += fed.looked_at;
        if open {
            self.schedule(tenant, sources, false, Timer { at, ..timer });
        } else {
            self.remove(timer.bucket, timer.slot);
        }
        self.costs.end(&step, (number, tenant), false);
    }

    /// Drops groups that no event can concern any more. Which are dropped first does not matter to what fires: one that is
    /// still there begins anew when it is found.
    fn expire(&mut self, set: &CorrelationSet, tenant: u32, mut expired_max: usize) {
        let mut at = 0;
        while let Some(queue) = self.clock.tenants.get(tenant as usize).and_then(|tenant| tenant.queues.get(at)) {
            let sources = queue.sources;
            let first = queue.expiring.peek();
            at += 1;
            let Some(mut timer) = first else { continue };
            let mark = self.clock.mark(tenant, sources);
            while timer.at <= mark && expired_max > 0 {
                if let Some(queue) = self.clock.queue(tenant, sources) {
                    queue.expiring.pop();
                }
                expired_max -= usize::from(self.outlived(set, tenant, sources, timer));
                let next = self.clock.queue(tenant, sources).and_then(|queue| queue.expiring.peek());
                let Some(next) = next else { break };
                timer = next;
            }
        }
        self.clock.tidy(tenant);
    }

    /// Drops the group of a timer, or waits on when there were events since. Says whether it was dropped.
    fn outlived(&mut self, set: &CorrelationSet, tenant: u32, sources: u64, timer: Timer) -> bool {
        let Some(bucket) = self.buckets.get_mut(timer.bucket as usize) else { return false };
        let Some(correlation) = set.correlations.get(bucket.correlation as usize) else { return false };
        let terms = Terms::new(correlation, self.events_max);
        let Some(group) = bucket.get_mut(timer.slot) else { return false };
        if group.number != timer.number || group.sources != sources || group.armed != timer.at {
            return false;
        }
        let deadline = group.deadline(&terms, true);
        if deadline > timer.at {
            group.armed = deadline;
            self.schedule(tenant, sources, true, Timer { at: deadline, ..timer });
            return false;
        }
        self.remove(timer.bucket, timer.slot);
        true
    }
}
