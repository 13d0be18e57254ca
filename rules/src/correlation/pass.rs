//! What event time has passed: windows that are decided, groups that are dropped.

use crate::correlation::clock::Timer;
use crate::correlation::entry::EventId;
use crate::correlation::group::{Fed, Terms};
use crate::correlation::read::Batch;
use crate::correlation::run::{Correlations, Fired, Firing, raised};
use crate::correlation::set::CorrelationSet;

impl Correlations {
    /// Decides the windows of a tenant that are over and drops groups that are of no use any more, so many at most.
    pub(super) fn pass(
        &mut self,
        set: &CorrelationSet,
        batch: &mut Batch<'_>,
        tenant: u32,
        expired_max: usize,
        (row, out): (usize, &mut Vec<Fired>),
    ) {
        loop {
            let mut fired = self.close(set, tenant);
            if fired.is_empty() {
                break;
            }
            fired.sort_by(|(left_end, left), (right_end, right)| {
                (left_end, left.correlation, &left.key).cmp(&(right_end, right.correlation, &right.key))
            });
            let mut work = Vec::new();
            for (_, mut firing) in fired {
                out.extend(firing.alert.take().map(|alert| Fired { row, before: true, alert }));
                let Some(correlation) = set.correlations.get(firing.correlation as usize) else { continue };
                self.follow(set, correlation, batch, &firing, &mut work);
                self.run(set, batch, tenant, &mut work, (row, true, out));
            }
        }
        self.expire(set, tenant, expired_max);
    }

    /// Takes the windows that are over out of their groups; those that fired with the end of each.
    fn close(&mut self, set: &CorrelationSet, tenant: u32) -> Vec<(i64, Firing)> {
        let mut fired = Vec::new();
        let mut at = 0;
        while let Some(queue) = self.clock.tenants.get(tenant as usize).and_then(|tenant| tenant.queues.get(at)) {
            let sources = queue.sources;
            let first = queue.closing.peek();
            at += 1;
            let Some(mut timer) = first else { continue };
            let mark = self.clock.mark(tenant, sources);
            while timer.at <= mark {
                if let Some(queue) = self.clock.queue(tenant, sources) {
                    queue.closing.pop();
                }
                self.decide(set, tenant, (sources, mark), timer, &mut fired);
                let next = self.clock.queue(tenant, sources).and_then(|queue| queue.closing.peek());
                let Some(next) = next else { break };
                timer = next;
            }
        }
        fired
    }

    fn decide(
        &mut self,
        set: &CorrelationSet,
        tenant: u32,
        (sources, mark): (u64, i64),
        timer: Timer,
        fired: &mut Vec<(i64, Firing)>,
    ) {
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
        while group.deadline(&terms, false) <= mark {
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
            fired.push((end, firing));
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
