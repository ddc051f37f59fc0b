//! Work that blocks, on threads of the runtime's own.
//!
//! Leaves to others: what the work is and what its result means. Invariant:
//! whoever waits for work hears of it, even where no thread can be started or
//! the work panics; work whose failure was told is never done later.

use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::spawn_blocking;

/// Blocking calls of one session under way at once.
const HANDS_MAX: usize = 4;
const DOING: &str = "cannot go on with a file's work";

/// A piece of work, done on a hand; or told why there is none.
type HandsPiece = Box<dyn FnOnce(Option<Error>) + Send>;

/// A session's few hands, which take one piece of work after another: to wake a
/// thread for each cost 2,000 small files more futex calls than all else together.
#[derive(Clone, Default)]
pub(crate) struct Hands(Arc<Mutex<HandsQueue>>);

/// What waits for a hand.
#[derive(Default)]
struct HandsQueue {
    waiting: VecDeque<HandsPiece>,
    hands: usize,
}

impl Hands {
    /// Has `piece` done, behind what was given before.
    pub(crate) fn give(&self, piece: impl FnOnce(Option<Error>) + Send + 'static) {
        let mut pieces = self.lock();
        pieces.waiting.push_back(Box::new(piece));
        if pieces.hands == HANDS_MAX {
            return;
        }
        pieces.hands += 1;
        drop(pieces);
        let (hands, doing) = (self.clone(), self.clone());
        tokio_uring::spawn(async move {
            if let Err(error) = blocking(move || doing.work()).await {
                hands.refuse(&error);
            }
        });
    }

    /// Does what waits until nothing does.
    fn work(&self) {
        while let Some(piece) = self.next() {
            piece(None);
        }
    }

    /// The next piece; a hand that finds none is gone when this returns.
    fn next(&self) -> Option<HandsPiece> {
        let mut pieces = self.lock();
        let piece = pieces.waiting.pop_front();
        pieces.hands -= usize::from(piece.is_none());
        piece
    }

    /// One hand could not be had: where it was the only one, what waits is told.
    fn refuse(&self, error: &Error) {
        let mut pieces = self.lock();
        pieces.hands -= 1;
        let told = match pieces.hands {
            0 => std::mem::take(&mut pieces.waiting),
            _ => VecDeque::new(),
        };
        drop(pieces);
        told.into_iter()
            .for_each(|piece| piece(Some(error.clone())));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HandsQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `work` comes to.
///
/// # Errors
/// It panicked (our own invariant broke).
pub(crate) fn done_or_panicked<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Error::local(DOING, "the work panicked"))
}

/// Does `work` on a blocking thread.
///
/// # Errors
/// No thread can be started, or the work panicked (our own invariant broke).
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let work = Arc::new(Mutex::new(Some(work)));
    let held = work.clone();
    let take = move || {
        let work = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.map(|work| work())
    };
    // The runtime panics where it has no thread, and keeps what it was given.
    let Ok(started) = catch_unwind(AssertUnwindSafe(|| spawn_blocking(take))) else {
        drop(work.lock().unwrap_or_else(PoisonError::into_inner).take());
        return Err(Error::local(DOING, "no thread can be started")
            .cure("raise the limits of processes and of memory (`ulimit -u`, `ulimit -v`)"));
    };
    match started.await {
        Ok(Some(done)) => Ok(done),
        // Nobody else takes it out.
        Ok(None) => Err(Error::local(DOING, "it was given up")),
        Err(error) => Err(Error::local(DOING, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn each_piece_is_done_once_by_a_few_hands_in_any_order_of_giving() {
        let threads = Arc::new(Mutex::new(std::collections::HashSet::new()));
        tokio_uring::start(async {
            let (hands, (told, heard)) = (Hands::default(), mpsc::channel());
            for round in 0..3 {
                for number in 0..500 {
                    let (told, threads) = (told.clone(), threads.clone());
                    hands.give(move |refused| {
                        assert_eq!(refused, None);
                        let thread = std::thread::current().id();
                        threads.lock().expect("unpoisoned").insert(thread);
                        told.send(number).expect("heard");
                    });
                }
                let mut all = Vec::new();
                while all.len() < 500 {
                    all.extend(heard.try_iter());
                    tokio::task::yield_now().await;
                }
                all.sort_unstable();
                assert!(all.into_iter().eq(0..500), "{round}");
            }
        });
        let threads = threads.lock().expect("unpoisoned").len();
        assert!((1..=3 * HANDS_MAX).contains(&threads), "{threads}");
    }

    #[test]
    fn what_waits_for_the_only_hand_is_told_that_there_is_none() {
        let hands = Hands::default();
        let (told, heard) = mpsc::channel();
        hands.lock().hands = 1;
        for _ in 0..2 {
            let told = told.clone();
            let piece = move |refused: Option<Error>| told.send(refused).expect("heard");
            hands.lock().waiting.push_back(Box::new(piece));
        }
        let error = Error::local(DOING, "no thread can be started");
        hands.refuse(&error);
        assert_eq!(
            heard.try_iter().collect::<Vec<_>>(),
            [Some(error.clone()), Some(error)]
        );
        assert_eq!(hands.lock().hands, 0);
    }

    #[test]
    fn a_panic_is_told() {
        tokio_uring::start(async {
            assert_eq!(blocking(|| 5).await, Ok(5));
            let error = blocking(|| panic!("as the test wants")).await;
            let error: Error = error.map(|(): ()| ()).expect_err("told");
            assert!(error.sentence.contains("a file's work"), "{error}");
        });
    }
}
