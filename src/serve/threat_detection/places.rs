//! A bounded number of places for work that is asked for, some of them for each tenant.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The places.
#[derive(Debug)]
pub struct Places {
    taken: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    places_max: usize,
    tenant_places_max: usize,
}

/// A place that is taken. Dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    taken: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    org_id: Arc<str>,
}

impl Places {
    /// So many places, and so many of them for one tenant.
    pub fn new(places_max: usize, tenant_places_max: usize) -> Self {
        Self { taken: Arc::default(), places_max, tenant_places_max }
    }

    /// Takes a place; `None` when all, or all of the tenant's, are taken.
    pub fn enter(&self, org_id: &Arc<str>) -> Option<Place> {
        let mut taken = self.taken.lock();
        let own = taken.get(org_id).copied().unwrap_or(0);
        if taken.values().sum::<usize>() >= self.places_max || own >= self.tenant_places_max {
            return None;
        }
        taken.insert(org_id.clone(), own + 1);
        Some(Place { taken: self.taken.clone(), org_id: org_id.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        let left = taken.get(&self.org_id).map_or(0, |own| own.saturating_sub(1));
        if left == 0 {
            taken.remove(&self.org_id);
        } else {
            taken.insert(self.org_id.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_takes_all_places() {
        let places = Places::new(3, 2);
        let (acme, zeta): (Arc<str>, Arc<str>) = ("acme".into(), "zeta".into());
        let first = places.enter(&acme).expect("a place");
        let _second = places.enter(&acme).expect("a place");
        assert!(places.enter(&acme).is_none());
        let _third = places.enter(&zeta).expect("a place");
        assert!(places.enter(&zeta).is_none(), "all are taken");
        drop(first);
        assert!(places.enter(&zeta).is_some());
        assert_eq!(places.taken.lock().len(), 2);
    }
}
