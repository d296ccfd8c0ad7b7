//! Attempts side by side, of which one is enough.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use crate::runtime::Handle;

/// The first success among `attempts`, or the last failure; `None` without any. Each attempt begins when the one before
/// it has failed or has had `head_start` to itself, and goes on beside those that follow.
pub(crate) async fn race<T, E, F>(
    attempts: impl IntoIterator<Item = F>,
    head_start: Duration,
    handle: &Handle,
) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let (mut attempts, mut begun, mut last) = (attempts.into_iter().fuse(), FuturesUnordered::new(), None);
    loop {
        let next = attempts.next();
        let is_last = next.is_none();
        begun.extend(next);
        let ended = if is_last {
            begun.next().await
        } else {
            match select(begun.next(), handle.sleep(head_start)).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => continue,
            }
        };
        match ended {
            Some(Ok(success)) => return Some(Ok(success)),
            Some(failure) => last = Some(failure),
            None => return last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use crate::runtime::Executor;
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::mpsc;

    /// The result of racing attempts that end so, or never.
    fn raced(attempts: Vec<Option<Result<u8, u8>>>) -> Option<Result<u8, u8>> {
        let mut executor = Executor::new(Arc::new(System::default()));
        let (handle, (done, result)) = (executor.handle().clone(), mpsc::channel());
        executor.handle().spawn(async move {
            let attempt = |end: Option<Result<u8, u8>>| async move {
                match end {
                    Some(end) => ready(end).await,
                    None => pending().await,
                }
            };
            done.send(race(attempts.into_iter().map(attempt), Duration::from_millis(1), &handle).await).unwrap();
        });
        loop {
            executor.run_until_stalled();
            if let Ok(result) = result.try_recv() {
                return result;
            }
        }
    }

    #[test]
    fn the_first_success_wins_whatever_hangs_or_fails_before_it() {
        assert_eq!(raced(vec![None, Some(Err(1)), None, Some(Ok(2)), Some(Ok(3))]), Some(Ok(2)));
        assert_eq!(raced(vec![Some(Ok(1)), Some(Ok(2))]), Some(Ok(1)));
    }

    #[test]
    fn without_a_success_it_is_the_last_failure() {
        assert_eq!(raced(vec![Some(Err(1)), Some(Err(2))]), Some(Err(2)));
        assert_eq!(raced(vec![]), None);
    }
}
