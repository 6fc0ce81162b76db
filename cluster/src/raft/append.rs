//! The stream of appends to one replica, one at a time, and when its leader's commits reach it.
//!
//! openraft sends a follower a second, empty append as soon as what it was sent is committed, so
//! that it applies too. Under load the next entries leave a moment later and say the same: such an
//! append waits a little, and does not travel at all when entries overtake it.

use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::RPCError;
use openraft::network::v2::RaftNetworkV2;
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};
use openraft::OptionalSend;

use super::network::GroupLink;
use super::types::{LogId, TypeConfig};

/// How much later a follower may learn that something was committed.
const COMMIT_LINGER: Duration = Duration::from_millis(10);

type Request = AppendEntriesRequest<TypeConfig>;
type Answered = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;
pub(super) type Answers<'s> = BoxFuture<'s, Result<BoxStream<'s, Answered>, RPCError<TypeConfig>>>;

struct Appending<'s, S> {
    link: &'s mut GroupLink,
    requests: S,
    option: RPCOption,
    /// Entries were sent over this stream. What is empty before that is a probe or a heartbeat,
    /// and somebody waits for its answer.
    sent_entries: bool,
    ended: bool,
}

/// Sends each request once the one before has been answered; ends with the first that fails.
pub(super) fn stream<'s, S>(link: &'s mut GroupLink, requests: S, option: RPCOption) -> Answers<'s>
where
    S: Stream<Item = Request> + OptionalSend + Unpin + 'static,
{
    let appending = Appending {
        link,
        requests,
        option,
        sent_entries: false,
        ended: false,
    };
    let answers = futures::stream::unfold(Some(appending), |appending| async move {
        let mut appending = appending?;
        let request = appending.next().await?;
        let (answer, goes_on) = appending.send(request).await;
        Some((answer, goes_on.then_some(appending)))
    });
    Box::pin(async move { Ok(Box::pin(answers) as BoxStream<'s, Answered>) })
}

impl<S: Stream<Item = Request> + Unpin> Appending<'_, S> {
    /// The next request that is worth sending.
    ///
    /// One that is passed over is never answered; whatever openraft notes of it is covered by the
    /// answer to the one that overtook it.
    async fn next(&mut self) -> Option<Request> {
        if self.ended {
            return None;
        }
        let mut held: Option<Request> = None;
        let linger = tokio::time::sleep(COMMIT_LINGER);
        tokio::pin!(linger);
        loop {
            let request = tokio::select! {
                biased;
                request = self.requests.next() => request,
                () = &mut linger, if held.is_some() => return held,
            };
            match request {
                Some(request) if request.entries.is_empty() && self.sent_entries => {
                    if held.is_none() {
                        linger.as_mut().reset(tokio::time::Instant::now() + COMMIT_LINGER);
                    }
                    held = Some(request);
                }
                Some(request) => return Some(request),
                // The end of the stream: nothing more will overtake it.
                None => {
                    self.ended = true;
                    return held;
                }
            }
        }
    }

    async fn send(&mut self, request: Request) -> (Answered, bool) {
        self.sent_entries |= !request.entries.is_empty();
        let prev = request.prev_log_id;
        let last = request.entries.last().map_or(prev, |entry| Some(entry.log_id));
        match RaftNetworkV2::append_entries(self.link, request, self.option.clone()).await {
            Ok(answer) => {
                let whole = is_whole(&answer, last);
                let result = answer.into_stream_result(prev, last);
                let goes_on = result.is_ok() && whole;
                (Ok(result), goes_on)
            }
            Err(error) => (Err(error), false),
        }
    }
}

fn is_whole(answer: &AppendEntriesResponse<TypeConfig>, last: Option<LogId>) -> bool {
    match answer {
        AppendEntriesResponse::PartialSuccess(until) => *until == last,
        _ => true,
    }
}
