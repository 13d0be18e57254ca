//! Records on their way, in the order of the log: up to where all are acknowledged.

use std::collections::VecDeque;

use tidegate_pipeline::Offset;

use super::failure::FluvioFailure;
use super::producer::Sending;

/// What is on its way.
pub(super) trait OnItsWay {
    /// Waits until it has arrived.
    fn arrived(self) -> impl Future<Output = Result<(), FluvioFailure>> + Send;
}

impl OnItsWay for Sending {
    async fn arrived(self) -> Result<(), FluvioFailure> {
        self.acknowledged().await.map(drop)
    }
}

/// See the module.
pub(super) struct Window<S = Sending> {
    sent: VecDeque<(S, Offset, usize)>,
    room: usize,
    /// Rows below it have arrived.
    cursor: Offset,
    /// The first one that did not arrive. Those after it may, and the cursor must not pass it.
    failed: Option<FluvioFailure>,
}

impl<S: OnItsWay> Window<S> {
    /// Nothing is on its way, rows below `cursor` have arrived.
    pub(super) fn new(cursor: Offset) -> Self {
        Self { sent: VecDeque::new(), room: 0, cursor, failed: None }
    }

    /// Adds what was sent last: a row at this offset, which takes so much room.
    pub(super) fn add(&mut self, sending: S, offset: Offset, room: usize) {
        self.sent.push_back((sending, offset + 1, room));
        self.room += room;
    }

    /// Waits for the oldest until no more than so much room is taken.
    ///
    /// # Errors
    /// The failure of the first record that did not arrive, from then on always.
    pub(super) async fn settle(&mut self, room_max: usize) -> Result<(), FluvioFailure> {
        loop {
            if let Some(failure) = &self.failed {
                return Err(failure.clone());
            }
            let Some((sending, next, room)) = self.sent.pop_front_if(|_| self.room > room_max) else { return Ok(()) };
            self.room -= room;
            match sending.arrived().await {
                Ok(()) => self.cursor = self.cursor.max(next),
                Err(failure) => self.failed = Some(failure),
            }
        }
    }

    /// Rows below it have arrived.
    pub(super) fn cursor(&self) -> Offset {
        self.cursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arrives, or does not.
    struct Told(bool);

    impl OnItsWay for Told {
        async fn arrived(self) -> Result<(), FluvioFailure> {
            if self.0 { Ok(()) } else { Err(FluvioFailure::Away("lost".to_owned())) }
        }
    }

    #[tokio::test]
    async fn the_cursor_never_passes_what_did_not_arrive() {
        for (arrive, cursor) in [
            (vec![true, true, true], 13),
            (vec![true, false, true], 11),
            (vec![false, true, true], 10),
            (vec![true, true, false], 12),
        ] {
            let lost = arrive.contains(&false);
            let mut window = Window::new(10);
            for (told, offset) in arrive.iter().zip(10..) {
                window.add(Told(*told), offset, 5);
            }
            for _ in 0..3 {
                assert_eq!(window.settle(0).await.is_err(), lost, "{arrive:?}");
                assert_eq!(window.cursor(), cursor, "{arrive:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_oldest_make_room() {
        let mut window = Window::new(0);
        (0..4).for_each(|offset| window.add(Told(true), offset, 5));
        for (room_max, cursor) in [(20, 0), (19, 1), (10, 2), (4, 4), (0, 4)] {
            window.settle(room_max).await.expect("all arrive");
            assert_eq!(window.cursor(), cursor, "{room_max}");
        }
    }
}
