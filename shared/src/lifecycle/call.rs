//! What is particular to a voice item: the slots that its call takes, the intent to place it, looking it up and hanging up.
//!
//! A call is placed at most once: the intent is written before the provider is asked, and whoever finds an intent without an
//! answer looks the call up first. An item that is over owes a hang-up until the end of its call is known, and its slots are
//! free only then, because a call that goes on still takes them, whatever the item says.

use serde::{Deserialize, Serialize};

use super::{Fact, Facts, Failure, Item, Owed, Refused, Source, State, pause_ms};
use crate::ids;
use uuid::Uuid;

/// How long after its longest duration a call is still believed to be up when nobody reported its end, in milliseconds.
pub const GRACE_MS: i64 = 60_000;
/// How often a call is looked up while nobody reports its end, in milliseconds.
pub const LOOK_EVERY_MS: i64 = 60_000;
/// How often a provider may turn an order away before its item fails, and the longest pause between two orders where it does not ask
/// for a longer one, in milliseconds.
const MAX_TURNED_AWAY: u32 = 30;
const TURNED_AWAY_MS: i64 = 60_000;
/// How many call slots a voice item takes: one for the tester's leg and one for the target's.
pub const CALL_SLOTS: usize = 2;

/// The slots that an item holds while its conversation may be going on. Each is a row that names its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// The numbers of its organization's call slots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<u32>,
    /// The number of its run's slot, if the run has a cap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
}

impl Slots {
    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.run.is_none()
    }
}

/// What the head of a voice item says of its call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The endpoint of the provider that carries it.
    pub endpoint: Uuid,
    /// Since when the provider may know of it, in milliseconds since the Unix epoch: it was meant to be placed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intended_at: Option<i64>,
    /// When its longest duration is over, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<i64>,
    /// How often its order could not be sent, or was turned away by a provider that was too busy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub turned_away: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Call {
    /// When it cannot be up any more, in milliseconds since the Unix epoch.
    fn over_at(&self) -> Option<i64> {
        self.deadline.map(|deadline| deadline + GRACE_MS)
    }

    /// Whether its end should have been reported long ago.
    #[must_use]
    pub fn is_overdue(&self, now: i64) -> bool {
        self.over_at().is_some_and(|at| now >= at)
    }
}

impl Facts {
    /// The provider's name for the call.
    #[must_use]
    pub fn call(source: Source, id: &str) -> Self {
        Self {
            call_id: Some(Fact {
                source,
                value: id.to_owned(),
            }),
            ..Self::default()
        }
    }
}

impl Item {
    /// A new item that waits for its slots. Who gives them out finds it by its run: nobody has to look after it by itself.
    #[must_use]
    pub fn queued(self) -> Self {
        Self {
            state: State::Queued,
            owed: Owed::Admit,
            due_at: None,
            ..self
        }
    }

    /// A new item whose call is carried by the provider at `endpoint`.
    #[must_use]
    pub fn by_voice(self, endpoint: Uuid) -> Self {
        Self {
            call: Some(Call {
                endpoint,
                intended_at: None,
                deadline: None,
                turned_away: 0,
            }),
            ..self.queued()
        }
    }

    /// The provider's name for its call, if it is known.
    #[must_use]
    pub fn call_id(&self) -> Option<&str> {
        self.facts.call_id.as_ref().map(|fact| fact.value.as_str())
    }

    /// The call's id as users see it: the provider's own where it is a UUID, else one that is derived from it.
    #[must_use]
    pub fn shown_call_id(&self) -> Option<Uuid> {
        let endpoint = self.call.as_ref()?.endpoint;
        self.call_id().map(|id| ids::shown_call_id(endpoint, id))
    }

    /// It gets its slots and may start.
    ///
    /// # Errors
    /// When it waits for none.
    pub fn admit(&self, slots: &Slots, now: i64) -> Result<Self, Refused> {
        if self.owed != Owed::Admit {
            return Err(Refused::Past);
        }
        let mut item = self.next(now);
        item.slots = slots.clone();
        item.enter(State::Admitted, now);
        item.owe(Owed::Start, now);
        Ok(item)
    }

    /// A worker takes the item to place its call (which may last `longest_ms` milliseconds), look it up or hang it up, for
    /// `lease_ms` milliseconds. For a first start this writes down the intent. What comes back may be owed nothing any more,
    /// because the call is long over: then nobody holds it.
    ///
    /// # Errors
    /// When none of this is owed, another worker holds the item, or its pause is not over.
    pub fn claim_call(&self, owner: &str, lease_ms: i64, longest_ms: i64, now: i64) -> Result<Self, Refused> {
        if !matches!(self.owed, Owed::Start | Owed::LookUp | Owed::HangUp) {
            return Err(Refused::Past);
        }
        self.free(now)?;
        let mut item = self.next(now);
        let Some(call) = &mut item.call else {
            return Err(Refused::Past);
        };
        if item.owed == Owed::Start {
            call.intended_at.get_or_insert(now);
            // The order that is repeated is the one that may have its full length.
            call.deadline = Some(now + longest_ms);
        }
        item.follow(now);
        if item.owed != Owed::Nothing {
            item.take(owner, lease_ms, now);
        }
        Ok(item)
    }

    /// The provider answered that the call is placed. It counts whoever learned of it: the item may have been canceled or
    /// taken over meanwhile.
    #[must_use]
    pub fn placed(&self, owner: &str, call_id: &str, now: i64) -> Self {
        let mut item = self.observe(Facts::call(Source::Report, call_id), now);
        if item.owed == Owed::Start && item.held_by(owner).is_ok() {
            item.owe_look_up(now);
        }
        item
    }

    /// The provider refused the first order: there is no call, and the item fails.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn refused(&self, owner: &str, failure: &Failure, now: i64) -> Result<Self, Refused> {
        self.without_intent().fail(owner, failure, now)
    }

    /// The order was not sent, or the provider turned it away because it has too much to do: it is owed again after a pause of at least
    /// `rest_ms` milliseconds. Where it was the first order there is no call; with `again` an earlier one may have been taken.
    ///
    /// # Errors
    /// When the worker holds the item no longer.
    pub fn turned_away(
        &self,
        owner: &str,
        failure: &Failure,
        again: bool,
        rest_ms: i64,
        now: i64,
    ) -> Result<Self, Refused> {
        self.held_by(owner)?;
        self.open()?;
        if self.owed != Owed::Start {
            return Err(Refused::Past);
        }
        let basis = if again {
            self.clone()
        } else {
            self.without_intent()
        };
        let times = self.call.as_ref().map_or(0, |call| call.turned_away) + 1;
        if times >= MAX_TURNED_AWAY {
            return basis.fail(owner, failure, now);
        }
        let mut item = basis.next(now);
        if let Some(call) = &mut item.call {
            call.turned_away = times;
        }
        item.lease = None;
        item.pause(pause_ms(times).min(TURNED_AWAY_MS).max(rest_ms), now);
        Ok(item)
    }

    /// The worker that was to hang the call up learned that there is none.
    ///
    /// # Errors
    /// When the worker holds the item no longer, or the call's name is known by now.
    pub fn not_placed(&self, owner: &str, now: i64) -> Result<Self, Refused> {
        self.held_by(owner)?;
        if self.owed != Owed::HangUp || self.call_id().is_some() {
            return Err(Refused::Past);
        }
        let mut item = self.without_intent().next(now);
        item.follow(now);
        Ok(item)
    }

    fn without_intent(&self) -> Self {
        let mut item = self.clone();
        if let Some(call) = &mut item.call {
            call.intended_at = None;
        }
        item
    }

    /// The worker looked the call up, or asked for its end, and learned `facts` of it. If it is not over yet, somebody looks
    /// again later.
    ///
    /// # Errors
    /// When the worker holds the item no longer and `facts` say nothing about the end.
    pub fn heard(&self, owner: &str, facts: Facts, now: i64) -> Result<Self, Refused> {
        if facts.ended.is_none() {
            self.held_by(owner)?;
        }
        let mut item = self.observe(facts, now);
        if item.held_by(owner).is_err() {
            return Ok(item);
        }
        match item.owed {
            Owed::HangUp => {
                item.lease = None;
                item.attempts = self.attempts + 1;
                // When the call must be over, somebody looks at once.
                let over = item
                    .call
                    .as_ref()
                    .and_then(Call::over_at)
                    .unwrap_or(i64::MAX)
                    .max(now);
                let again = (now + pause_ms(item.attempts)).min(over);
                item.not_before = Some(again);
                item.due_at = Some((again + LOOK_EVERY_MS).min(over));
            }
            Owed::Start | Owed::LookUp => item.owe_look_up(now),
            _ => {}
        }
        Ok(item)
    }

    pub(super) fn owe_look_up(&mut self, now: i64) {
        self.owe(Owed::LookUp, now);
        // When the call must be over, somebody looks at once.
        let over = self.call.as_ref().and_then(Call::over_at).unwrap_or(i64::MAX);
        self.due_at = Some((now + LOOK_EVERY_MS).min(over.max(now)));
    }

    /// Brings slots and what is owed in line with what is known: an item gives its slots back when its conversation is over,
    /// and one that was stopped while its call may be up owes the call's end before.
    pub(super) fn follow(&mut self, now: i64) {
        let up = match &self.call {
            // A name is as good as an intent: the provider may have placed what it was thought not to know.
            Some(call) if self.state.is_terminal() => {
                let placed = call.intended_at.is_some() || self.facts.call_id.is_some();
                placed && self.facts.ended.is_none() && !call.is_overdue(now)
            }
            _ => false,
        };
        if up {
            if self.owed != Owed::HangUp {
                self.owe(Owed::HangUp, now);
            }
        } else if self.is_over() {
            self.slots = Slots::default();
            if self.state.is_terminal() {
                self.settle();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::lifecycle::Fault;

    const NOW: i64 = 1_700_000_000_000;
    const LONGEST: i64 = 600_000;
    const LEASE: i64 = 75_000;

    fn queued() -> Item {
        Item::admitted(Uuid::nil(), ids::new_id(NOW), 3, 5, NOW).by_voice(Uuid::max())
    }

    fn slots(calls: [u32; CALL_SLOTS]) -> Slots {
        Slots {
            calls: calls.to_vec(),
            run: None,
        }
    }

    fn placed() -> Item {
        let item = queued().admit(&slots([4, 5]), NOW).unwrap();
        item.claim_call("a", LEASE, LONGEST, NOW).unwrap()
    }

    #[test]
    fn a_call_goes_from_its_slots_to_its_verdict() {
        let item = queued();
        assert_eq!(
            (item.waiting(), item.owed),
            (None, Owed::Admit),
            "relay admits it"
        );
        let item = item.admit(&slots([4, 5]), NOW).unwrap();
        assert_eq!((item.state, item.waiting()), (State::Admitted, Some(Owed::Start)));
        assert_eq!(item.admit(&slots([6, 7]), NOW), Err(Refused::Past));
        let item = item.claim_call("a", LEASE, LONGEST, NOW).unwrap();
        let call = item.call.clone().unwrap();
        assert_eq!(
            (call.intended_at, call.deadline),
            (Some(NOW), Some(NOW + LONGEST))
        );
        let item = item.placed("a", "call-1", NOW + 10);
        assert_eq!(
            (item.owed, item.waiting(), item.due_at),
            (Owed::LookUp, None, Some(NOW + 10 + LOOK_EVERY_MS)),
            "a call is looked up when its webhooks do not come"
        );
        let item = item.observe(Facts::started(Source::Report, NOW + 20), NOW + 20);
        assert_eq!((item.state, item.owed), (State::Running, Owed::LookUp));
        assert_eq!(item.slots.calls, [4, 5]);
        let item = item.observe(Facts::ended(Source::Report, NOW + 30, "done"), NOW + 30);
        assert_eq!(
            (item.state, item.waiting()),
            (State::Evaluating, Some(Owed::Evaluate))
        );
        assert!(item.slots.is_empty());
        assert_eq!(item.call_id(), Some("call-1"));
    }

    #[test]
    fn an_order_that_was_turned_away_is_owed_again_and_not_for_ever() {
        let failure = Failure::new("busy", Some(Fault::Provider));
        let mut item = placed();
        let away = item.turned_away("a", &failure, false, 90_000, NOW).unwrap();
        let call = away.call.clone().unwrap();
        assert_eq!((call.intended_at, call.turned_away, away.attempts), (None, 1, 0));
        assert_eq!(away.not_before, Some(NOW + 90_000), "when it says");
        assert_eq!(
            (away.owed, away.slots.calls.len()),
            (Owed::Start, CALL_SLOTS),
            "it keeps its slots"
        );
        assert!(
            away.turned_away("a", &failure, false, 0, NOW).is_err(),
            "it is nobody's"
        );
        let again = item.turned_away("a", &failure, true, 0, NOW).unwrap();
        let intended = again.call.as_ref().and_then(|call| call.intended_at);
        assert_eq!(intended, Some(NOW), "an earlier order may have been taken");
        let mut now = NOW;
        for times in 1..MAX_TURNED_AWAY {
            item = item.turned_away("a", &failure, false, 0, now).unwrap();
            now = item.not_before.unwrap();
            assert!(now - item.updated_at <= TURNED_AWAY_MS, "{times}");
            item = item.claim_call("a", LEASE, LONGEST, now).unwrap();
        }
        let item = item.turned_away("a", &failure, false, 0, now).unwrap();
        assert_eq!(
            (item.state, item.owed),
            (State::Failed, Owed::Nothing),
            "there is no call"
        );
        assert!(item.slots.is_empty());
    }

    #[test]
    fn a_call_is_looked_up_at_once_when_it_must_be_over() {
        let item = placed().placed("a", "call-1", NOW + LONGEST + 30_000);
        assert_eq!(item.due_at, Some(NOW + LONGEST + GRACE_MS));
        let late = NOW + LONGEST + GRACE_MS + 5;
        let item = placed().placed("a", "call-1", late);
        assert_eq!(item.due_at, Some(late));
    }

    #[test]
    fn a_cancel_that_overtakes_the_answer_hangs_up_all_the_same() {
        let item = placed().cancel(NOW + 5).unwrap();
        assert_eq!(
            (item.state, item.waiting()),
            (State::Canceled, Some(Owed::HangUp))
        );
        assert_eq!(item.slots.calls, [4, 5], "the call is up still");
        let item = item.placed("a", "call-1", NOW + 6);
        assert_eq!((item.state, item.owed), (State::Canceled, Owed::HangUp));
        assert_eq!(item.call_id(), Some("call-1"));
        let item = item.claim_call("b", LEASE, LONGEST, NOW + 7).unwrap();
        let asked = item.heard("b", Facts::default(), NOW + 8).unwrap();
        assert_eq!(
            (asked.owed, asked.not_before),
            (Owed::HangUp, Some(NOW + 8 + pause_ms(1)))
        );
        let over = asked.observe(Facts::ended(Source::Report, NOW + 9, "hang-up"), NOW + 9);
        assert_eq!(
            (over.state, over.owed, over.due_at),
            (State::Canceled, Owed::Nothing, None)
        );
        assert!(over.slots.is_empty());
    }

    #[test]
    fn a_call_that_was_never_placed_needs_no_hang_up() {
        let item = queued().admit(&slots([0, 1]), NOW).unwrap().cancel(NOW).unwrap();
        assert_eq!((item.owed, item.due_at), (Owed::Nothing, None));
        assert!(item.slots.is_empty());
        assert_eq!(queued().cancel(NOW).unwrap().owed, Owed::Nothing);
    }

    #[test]
    fn a_refused_order_holds_no_slots() {
        let item = placed()
            .refused("a", &Failure::new("no", Some(Fault::Provider)), NOW)
            .unwrap();
        assert_eq!((item.state, item.owed), (State::Failed, Owed::Nothing));
        assert!(item.slots.is_empty());
    }

    #[test]
    fn a_call_that_turns_up_after_all_is_hung_up() {
        let failure = Failure::new("no", Some(Fault::Provider));
        let canceled = placed().cancel(NOW).unwrap();
        let asking = canceled.claim_call("b", LEASE, LONGEST, NOW).unwrap();
        for gone in [
            asking.not_placed("b", NOW).unwrap(),
            placed().refused("a", &failure, NOW).unwrap(),
        ] {
            assert_eq!((gone.owed, gone.due_at), (Owed::Nothing, None));
            assert!(gone.slots.is_empty());
            let up = gone.observe(Facts::call(Source::Report, "call-1"), NOW + 1);
            assert_eq!(up.waiting(), Some(Owed::HangUp));
        }
        let named = asking.observe(Facts::call(Source::Report, "call-1"), NOW);
        assert_eq!(named.not_placed("b", NOW), Err(Refused::Past));
    }

    #[test]
    fn a_repeated_order_has_its_full_length() {
        let failure = Failure::new("busy", Some(Fault::Provider));
        let paused = placed().retry("a", &failure, false, NOW).unwrap();
        let later = NOW + 300_000;
        let call = paused
            .claim_call("b", LEASE, LONGEST, later)
            .unwrap()
            .call
            .unwrap();
        assert_eq!(
            (call.intended_at, call.deadline),
            (Some(NOW), Some(later + LONGEST))
        );
    }

    #[test]
    fn who_hangs_up_looks_when_the_call_must_be_over() {
        let over = NOW + LONGEST + GRACE_MS;
        let mut item = placed().cancel(NOW).unwrap();
        let mut now = NOW;
        for _ in 0..20 {
            let held = item.claim_call("b", LEASE, LONGEST, now).unwrap();
            if held.owed == Owed::Nothing {
                break;
            }
            item = held.heard("b", Facts::default(), now).unwrap();
            assert!(item.not_before.unwrap() <= over && item.due_at.unwrap() <= over);
            now = item.not_before.unwrap();
        }
        assert_eq!(now, over);
    }

    #[test]
    fn a_hang_up_does_not_wait_when_the_calls_name_arrives() {
        let item = placed().cancel(NOW).unwrap();
        let held = item.claim_call("b", LEASE, LONGEST, NOW).unwrap();
        let paused = held.heard("b", Facts::default(), NOW).unwrap();
        assert!(paused.begins_to_wait(Some(&held)) && paused.not_before.is_some());
        let named = paused.placed("a", "call-1", NOW + 1);
        assert!(named.begins_to_wait(Some(&paused)) && named.not_before.is_none());
        let known = named.observe(Facts::started(Source::Report, NOW), NOW + 2);
        assert!(!known.begins_to_wait(Some(&named)));
    }

    #[test]
    fn a_call_whose_end_nobody_reports_holds_its_slots_until_it_must_be_over() {
        let item = placed().cancel(NOW).unwrap();
        let long_after = NOW + LONGEST + GRACE_MS;
        let held = item.claim_call("b", LEASE, LONGEST, long_after - 1).unwrap();
        assert_eq!((held.owed, held.slots.calls.len()), (Owed::HangUp, 2));
        let let_go = item.claim_call("b", LEASE, LONGEST, long_after).unwrap();
        assert_eq!(
            (let_go.owed, let_go.lease, let_go.due_at),
            (Owed::Nothing, None, None)
        );
        assert!(let_go.slots.is_empty());
    }

    fn source() -> impl Strategy<Value = Source> {
        prop_oneof![Just(Source::LookUp), Just(Source::Report)]
    }

    fn observation() -> impl Strategy<Value = Facts> {
        prop_oneof![
            (source(), 0_i64..50).prop_map(|(source, at)| Facts::started(source, NOW + at)),
            (source(), 0_i64..50, "[a-c]").prop_map(|(source, at, why)| Facts::ended(source, NOW + at, &why)),
            (source(), "[a-c]").prop_map(|(source, id)| Facts::call(source, &id)),
        ]
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit,
        Claim,
        Placed,
        Heard(Facts),
        Observe(Facts),
        ClaimEvaluation,
        Retry,
        Fail,
        Refuse,
        NotPlaced,
        Pass,
        Cancel,
        Requeue(bool),
        Wait(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Admit),
            Just(Step::Claim),
            Just(Step::Placed),
            observation().prop_map(Step::Heard),
            Just(Step::Heard(Facts::default())),
            observation().prop_map(Step::Observe),
            Just(Step::ClaimEvaluation),
            Just(Step::Retry),
            Just(Step::Fail),
            Just(Step::Refuse),
            Just(Step::NotPlaced),
            Just(Step::Pass),
            Just(Step::Cancel),
            any::<bool>().prop_map(Step::Requeue),
            (0_i64..400_000).prop_map(Step::Wait),
        ]
    }

    fn apply(item: &Item, step: &Step, owner: &str, now: i64) -> Result<Item, Refused> {
        let failure = Failure::new("it broke", Some(Fault::Provider));
        match step {
            Step::Admit => item.admit(&slots([2, 3]), now),
            Step::Claim => item.claim_call(owner, LEASE, LONGEST, now),
            Step::Placed => Ok(item.placed(owner, "call-1", now)),
            Step::Heard(facts) => item.heard(owner, facts.clone(), now),
            Step::Observe(facts) => Ok(item.observe(facts.clone(), now)),
            Step::ClaimEvaluation => item.claim_evaluation(owner, LEASE, now),
            Step::Retry => item.retry(owner, &failure, false, now),
            Step::Fail => item.fail(owner, &failure, now),
            // Nobody is refused what is placed.
            Step::Refuse if item.owed != Owed::Start => Err(Refused::Past),
            Step::Refuse => item.refused(owner, &failure, now),
            Step::NotPlaced => item.not_placed(owner, now),
            Step::Pass => item.decide(owner, Ok(()), now),
            Step::Cancel => item.cancel(now),
            Step::Requeue(void) => item.requeue(*void, now),
            Step::Wait(_) => Ok(item.clone()),
        }
    }

    proptest! {
        #[test]
        fn what_is_observed_of_a_call_in_any_order_gives_the_same_item(
            history in prop::collection::vec(observation(), 0..8),
            shuffle in prop::collection::vec(any::<Index>(), 0..24),
            canceled_at in any::<Index>(),
        ) {
            // With a cancel somewhere in between, or none at the end: the status may differ, what is left over may not.
            let straight = history.iter().fold(placed(), |item, facts| item.observe(facts.clone(), NOW));
            let mixed: Vec<&Facts> = shuffle
                .iter()
                .filter(|_| !history.is_empty())
                .map(|index| index.get(&history))
                .chain(history.iter().rev())
                .collect();
            let other = mixed.iter().fold(placed(), |item, facts| item.observe((*facts).clone(), NOW));
            let seen = |item: &Item| (item.state, item.owed, item.facts.clone(), item.slots.clone());
            prop_assert_eq!(seen(&straight), seen(&other));

            let cancel = canceled_at.index(mixed.len() + 1);
            let canceled = mixed.iter().enumerate().fold(placed(), |item, (n, facts)| {
                let item = if n == cancel { item.cancel(NOW).unwrap() } else { item };
                item.observe((*facts).clone(), NOW)
            });
            let canceled = if cancel == mixed.len() { canceled.cancel(NOW).unwrap() } else { canceled };
            prop_assert_eq!(canceled.state, State::Canceled);
            prop_assert_eq!(&canceled.facts, &straight.facts);
            let ended = straight.facts.ended.is_some();
            prop_assert_eq!(canceled.owed == Owed::Nothing, ended);
            prop_assert_eq!(canceled.slots.is_empty(), ended);
        }

        #[test]
        fn slots_are_held_exactly_as_long_as_the_call_may_be_up(
            steps in prop::collection::vec((step(), prop_oneof![Just("a"), Just("b")]), 0..40),
        ) {
            let (mut current, mut now) = (queued(), NOW);
            for (step, owner) in &steps {
                if let Step::Wait(ms) = step {
                    now += ms;
                }
                let Ok(next) = apply(&current, step, owner, now) else { continue };
                prop_assert!(next.state >= current.state, "{:?} -> {:?} by {:?}", current.state, next.state, step);
                if current.state.is_terminal() {
                    prop_assert_eq!(next.state, current.state);
                    prop_assert_eq!(&next.failure, &current.failure);
                }
                let call = next.call.as_ref().unwrap();
                prop_assert_eq!(matches!(next.owed, Owed::Nothing | Owed::Admit), next.due_at.is_none());
                if next.owed == Owed::Nothing {
                    prop_assert!(next.state.is_terminal());
                    prop_assert!(next.slots.is_empty());
                }
                // A call that may be up has its slots, and somebody will look after it.
                let may_be_up = call.intended_at.is_some() && next.facts.ended.is_none() && !call.is_overdue(now);
                if may_be_up {
                    prop_assert_eq!(next.slots.calls.len(), CALL_SLOTS);
                    prop_assert!(next.due_at.is_some());
                    prop_assert!(!next.state.is_terminal() || next.owed == Owed::HangUp);
                }
                if next.state == State::Queued {
                    prop_assert!(next.slots.is_empty() && call.intended_at.is_none());
                }
                // The intent is written once, until it is known that nothing came of it.
                let before = current.call.as_ref().unwrap().intended_at;
                let nothing = matches!(step, Step::Refuse | Step::NotPlaced);
                prop_assert!(before.is_none() || before == call.intended_at || nothing);
                current = next;
            }
        }
    }
}
