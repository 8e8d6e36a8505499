//! Plays an eval: a mock conversation whose checkpoints are judged as they come.

use ringback_shared::{
    clock::Deadline,
    conversation::{Mock, MockNext, Step},
    costs::{self, PlayedEval},
    lifecycle::{Cause, Failure, Fault},
    llm::Purpose,
    store::StoreError,
};

use crate::{Played, Slice, Stop, Worker};

/// Why a mock conversation ended that was played to its end.
pub(crate) const DONE: &str = "mockConversation.done";

impl Worker<'_> {
    pub(crate) async fn play(&mut self, resumed: bool, deadline: Deadline) -> Result<Slice, Stop> {
        let briefing = self.ctx.briefing(self.item.run, self.item.simulation).await?;
        let limits = self.ctx.config.limits;
        let script = briefing.script(limits)?;
        let steps: Vec<Step> = self.kept(resumed).await?;
        self.uses = costs::of_steps(&steps);
        let started = self.item.started_at().unwrap_or_else(|| self.ctx.clock.now_ms());
        let mut mock = Mock::new(script, started, steps);
        loop {
            let now = self.ctx.clock.now_ms();
            let next = mock.next(now);
            let goes_on = !matches!(next, MockNext::Done { .. } | MockNext::TimedOut);
            if goes_on && self.slice_is_over(deadline) {
                return Ok(Slice::Unfinished);
            }
            let step = match next {
                MockNext::Answer { request, model } => {
                    let reply = self.ask(Purpose::Target, request, &model).await?;
                    mock.answered(reply, now, self.ctx.clock.now_ms())
                }
                MockNext::Judge { request, model } => {
                    let reply = self.ask(Purpose::Judge, request, &model).await?;
                    mock.judged(&reply, now, self.ctx.clock.now_ms())
                }
                MockNext::Run { tool, call } => {
                    let result = self.run_tool(&tool, &call, deadline).await?;
                    mock.ran(result, now, self.ctx.clock.now_ms())
                }
                MockNext::Done { passed } => return self.played(&mock, passed, now),
                MockNext::TimedOut => {
                    let reason = format!("the mock conversation took longer than {} s", limits.max_seconds);
                    return Err(Stop::Failed {
                        failure: Failure::new(&reason, Some(Fault::Target)).with(Cause::Timeout),
                        transient: false,
                        rest_ms: 0,
                    });
                }
            };
            self.keep(step.n, &step, step.used.clone()).await?;
            mock.push(step);
        }
    }

    fn played(&self, mock: &Mock, passed: bool, now: i64) -> Result<Slice, Stop> {
        let (checked, failed) = mock.counts();
        let kept = PlayedEval {
            result: mock.result(now),
            model_uses: self.uses.clone(),
        };
        let verdict = if passed {
            Ok(())
        } else {
            Err(Failure::new(
                &format!("{failed} of {checked} checkpoints failed"),
                None,
            ))
        };
        let result = serde_json::to_string(&kept).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Slice::Judged(Played { verdict, result }))
    }
}
