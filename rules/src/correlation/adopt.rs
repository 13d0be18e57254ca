//! State and rules: what goes on, and what is dropped, when rules change, a state was restored, or a correlation panicked.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::compile::RuleSet;
use crate::correlation::costs::Costs;
use crate::correlation::run::Correlations;
use crate::correlation::saved::{Identity, Kept};
use crate::correlation::set::CorrelationSet;
use crate::panicked::attempt;

impl Correlations {
    /// Takes up other rules: the state of a correlation that is the same as before goes on, that of others is dropped.
    pub(super) fn adopt(&mut self, rules: &Arc<RuleSet>) {
        if self.rules.as_ref().is_some_and(|known| Arc::ptr_eq(known, rules)) {
            return;
        }
        let known = self.rules.replace(rules.clone());
        // Nothing is stopped any more: whoever changed rules may have mended it.
        self.costs = Costs::new(&rules.correlations, self.event_ns_max);
        let same =
            known.as_ref().is_some_and(|known| identities(&known.correlations) == identities(&rules.correlations));
        if same {
            return;
        }
        if let Some(known) = known {
            self.detach(&known.correlations);
        }
        self.attach(&rules.correlations);
    }

    /// Runs a step of a correlation for a tenant. If it panics the correlation stops for the tenant (for all, if it is the tenant's
    /// own), its groups are forgotten, and all else that the step may have left half changed is made anew from the other groups: a
    /// restart does no less.
    pub(super) fn step<T>(
        &mut self,
        set: &CorrelationSet,
        (number, tenant): (u32, u32),
        run: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        attempt(|| run(self)).unwrap_or_else(|_| {
            let org_id = self.clock.tenants.get(tenant as usize).map(|tenant| tenant.org_id.clone());
            let (number, tenant) = self.costs.panicked((number, tenant), org_id);
            self.buckets.retain(|own| own.correlation != number || tenant.is_some_and(|tenant| own.tenant != tenant));
            self.detach(set);
            self.attach(set);
            None
        })
    }

    /// Puts all state aside.
    fn detach(&mut self, set: &CorrelationSet) {
        for mut bucket in std::mem::take(&mut self.buckets) {
            let correlation = set.correlations.get(bucket.correlation as usize);
            let tenant = self.clock.tenants.get(bucket.tenant as usize);
            if let (Some(correlation), Some(tenant)) = (correlation, tenant) {
                let groups = bucket.drain();
                self.kept.push(Kept { org_id: tenant.org_id.clone(), identity: Identity::of(correlation), groups });
            }
        }
    }

    /// Takes up the state that was put aside, as far as there are correlations for it.
    fn attach(&mut self, set: &CorrelationSet) {
        self.buckets.clear();
        self.bucket_ids.clear();
        self.free_buckets.clear();
        self.clock.clear();
        (self.bytes, self.live) = (0, 0);
        let numbers: FxHashMap<Identity, u32> = identities(set).into_iter().zip(0..).collect();
        for kept in std::mem::take(&mut self.kept) {
            let Some(number) = numbers.get(&kept.identity).copied() else { continue };
            let Some(correlation) = set.correlations.get(number as usize) else { continue };
            let Some(tenant) = self.clock.tenant(&kept.org_id) else { continue };
            self.take_up(kept.groups, (number, correlation), tenant);
        }
    }
}

/// What tells whether state can be kept, in order.
fn identities(set: &CorrelationSet) -> Vec<Identity> {
    set.correlations.iter().map(Identity::of).collect()
}
