//! The sample agent: the front desk of a small clinic that books, moves and cancels appointments and answers questions
//! about prices, hours and doctors.
//!
//! It holds no state: each request replays the conversation so far. Two faults are planted, both marked `FAULT`, for
//! the demo to find: it books Sundays although the clinic is closed, and it moves an appointment without asking for the
//! date of birth.

use serde_json::{Value, json};

use super::{Reply, Request};

const CHECK: &str = "check_availability";
const BOOK: &str = "book_appointment";
const MOVE: &str = "reschedule_appointment";
const CANCEL: &str = "cancel_appointment";

const GREETING: &str = "Northside Clinic, how can I help you?";
const ANYTHING_ELSE: &str = "Is there anything else I can do for you?";
const GOODBYE: &str = "Thank you for calling Northside Clinic. Goodbye.";
const HOURS: &str = "We are open Monday to Friday from 8:00 to 18:00 and Saturday from 9:00 to 12:00. On Sunday we are closed.";
const EMERGENCY: &str =
    "This sounds like an emergency. Please hang up now and call the emergency number 112.";

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const SATURDAY: usize = 5;

/// A doctor, the first and the last day that they are in.
const DOCTORS: [(&str, usize, usize); 2] = [("Reed", 0, 2), ("Okafor", 2, 5)];

/// A service and its price in dollars.
const PRICES: [(&str, u32); 3] = [("check-up", 80), ("vaccination", 35), ("blood test", 45)];

/// The slots that are taken, for callers that offer no tools: day and minute of the day.
const TAKEN: [(usize, u16); 4] = [(0, 9 * 60), (1, 10 * 60), (1, 10 * 60 + 30), (3, 14 * 60)];

/// The tools as an assistant declares them.
pub(super) fn tools() -> Value {
    let tool = |name: &str, description: &str, fields: &[&str]| {
        let properties: serde_json::Map<String, Value> = fields
            .iter()
            .map(|field| ((*field).to_owned(), json!({"type": "string"})))
            .collect();
        json!({"type": "function", "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": fields},
        }})
    };
    json!([
        tool(
            CHECK,
            "Tells whether a slot is free, and which are if it is not.",
            &["day", "time", "doctor"]
        ),
        tool(
            BOOK,
            "Books a slot.",
            &["day", "time", "doctor", "name", "dateOfBirth"]
        ),
        tool(MOVE, "Moves the caller's appointment.", &["day", "time", "name"]),
        tool(
            CANCEL,
            "Cancels the caller's appointment.",
            &["name", "dateOfBirth"]
        ),
    ])
}

pub(super) fn reply(request: &Request) -> Reply {
    let mut desk = Desk::default();
    let mut reply = Reply::Say(GREETING.to_owned());
    for (index, message) in request.messages.iter().enumerate() {
        match message.role.as_str() {
            "user" => desk.hear(&message.text()),
            "tool" => {
                let called = request.messages[..index]
                    .iter()
                    .rev()
                    .filter_map(|earlier| earlier.tool_calls.as_ref())
                    .flatten()
                    .find(|call| Some(&call.id) == message.tool_call_id.as_ref());
                desk.learn(called.map_or("", |call| &call.function.name), &message.text());
            }
            _ => continue,
        }
        reply = desk.act(request);
    }
    reply
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Book,
    Move,
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Price(Option<usize>),
    Hours,
    Doctors,
    Emergency,
    Bye,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Day,
    Time,
    Name,
    BirthDate,
    Confirmation,
    AnythingElse,
}

/// What the desk knows at one point of a conversation.
#[derive(Debug, Default)]
struct Desk {
    task: Option<Task>,
    question: Option<Question>,
    asked: Option<Asked>,
    day: Option<usize>,
    time: Option<u16>,
    doctor: Option<usize>,
    name: Option<String>,
    birth_date: Option<String>,
    /// Whether the slot is free; unknown until looked up.
    free: Option<bool>,
    /// What to offer instead of a slot that is not free.
    alternatives: Vec<u16>,
    confirmed: bool,
    reference: Option<String>,
}

impl Desk {
    /// Takes in what the caller said.
    fn hear(&mut self, text: &str) {
        let words = text.to_lowercase();
        let has = |any: &[&str]| any.iter().any(|word| words.contains(word));
        let asked = self.asked.take();
        if has(&[
            "emergency",
            "chest pain",
            "can't breathe",
            "cannot breathe",
            "unconscious",
        ]) {
            self.question = Some(Question::Emergency);
            return;
        }
        match asked {
            Some(Asked::Name) => {
                self.name = Some(name(text));
                return;
            }
            Some(Asked::BirthDate) if text.chars().any(|c| c.is_ascii_digit()) => {
                self.birth_date = Some(birth_date(text));
                return;
            }
            Some(Asked::Confirmation) => {
                self.confirmed = has(&["yes", "sure", "correct", "please do", "go ahead"]);
            }
            _ => {}
        }
        if has(&["reschedule", "move my", "another day"]) {
            self.begin(Task::Move);
        } else if has(&["cancel"]) {
            self.begin(Task::Cancel);
        } else if has(&["book", "an appointment", "come in"]) && self.task.is_none() {
            self.begin(Task::Book);
        }
        if has(&["how much", "price", "cost"]) {
            let service = PRICES.iter().position(|(service, _)| words.contains(service));
            self.question = Some(Question::Price(service));
        } else if has(&[
            "opening hours",
            "are you open",
            "when do you open",
            "when do you close",
        ]) {
            self.question = Some(Question::Hours);
            return;
        } else if has(&["which doctor", "what doctor"]) {
            self.question = Some(Question::Doctors);
            return;
        } else if has(&["bye", "that is all", "that's all"]) {
            self.question = Some(Question::Bye);
            return;
        }
        let day = DAYS.iter().position(|day| words.contains(&day.to_lowercase()));
        let time = time(&words, asked == Some(Asked::Time));
        let doctor = DOCTORS
            .iter()
            .position(|(doctor, ..)| words.contains(&doctor.to_lowercase()));
        if day.is_some() && day != self.day {
            self.day = day;
            self.free = None;
        }
        if time.is_some() && time != self.time {
            self.time = time;
            // What the book offered itself needs no second look.
            self.free = time.filter(|time| self.alternatives.contains(time)).map(|_| true);
        }
        if doctor.is_some() && doctor != self.doctor {
            self.doctor = doctor;
            self.free = None;
        }
    }

    fn begin(&mut self, task: Task) {
        *self = Self {
            task: Some(task),
            name: self.name.take(),
            birth_date: self.birth_date.take(),
            ..Self::default()
        };
    }

    /// Takes in what a tool answered.
    fn learn(&mut self, tool: &str, result: &str) {
        let result: Value = serde_json::from_str(result).unwrap_or_default();
        match tool {
            CHECK => {
                self.free = Some(result["available"].as_bool().unwrap_or(true));
                let offered = result["alternatives"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                self.alternatives = offered
                    .iter()
                    .filter_map(|slot| time(slot.as_str().unwrap_or_default(), true))
                    .collect();
            }
            BOOK | MOVE | CANCEL => {
                self.reference = Some(
                    result["reference"]
                        .as_str()
                        .map_or_else(|| self.own_reference(), ToOwned::to_owned),
                );
            }
            _ => {}
        }
    }

    /// What to do next.
    fn act(&mut self, request: &Request) -> Reply {
        let answer = match self.question.take() {
            Some(Question::Emergency) => return say(EMERGENCY),
            Some(Question::Bye) => return say(GOODBYE),
            Some(Question::Hours) => Some(HOURS.to_owned()),
            Some(Question::Doctors) => Some(
                "Dr. Reed is in from Monday to Wednesday and Dr. Okafor from Wednesday to Saturday."
                    .to_owned(),
            ),
            Some(Question::Price(Some(service))) => {
                let (service, price) = PRICES[service];
                Some(format!("A {service} costs ${price}."))
            }
            Some(Question::Price(None)) => {
                let list: Vec<String> = PRICES
                    .iter()
                    .map(|(service, price)| format!("a {service} ${price}"))
                    .collect();
                Some(format!("I know these prices: {}.", list.join(", ")))
            }
            None => None,
        };
        let next = match self.task {
            Some(task) => self.next(task, request),
            None if answer.is_none() => {
                return self.ask(
                    Asked::AnythingElse,
                    "I can book, move or cancel an appointment. What would you like?",
                );
            }
            None => self.ask(Asked::AnythingElse, ANYTHING_ELSE),
        };
        match (answer, next) {
            (Some(answer), Reply::Say(next)) => Reply::Say(format!("{answer} {next}")),
            (_, next) => next,
        }
    }

    fn ask(&mut self, asked: Asked, question: &str) -> Reply {
        self.asked = Some(asked);
        say(question)
    }

    fn next(&mut self, task: Task, request: &Request) -> Reply {
        if self.reference.is_some() {
            return self.done(task);
        }
        if task != Task::Cancel
            && let Err(question) = self.slot(request)
        {
            return question;
        }
        if self.name.is_none() {
            return self.ask(Asked::Name, "May I have your full name, please?");
        }
        // FAULT: whoever moves an appointment is not asked who they are. It should be asked for every task.
        if self.birth_date.is_none() && task != Task::Move {
            return self.ask(Asked::BirthDate, "And what is your date of birth?");
        }
        if !self.confirmed {
            let summary = self.summary(task);
            return self.ask(Asked::Confirmation, &summary);
        }
        let (tool, arguments) = self.order(task);
        if request.offers(tool) {
            return Reply::Call { tool, arguments };
        }
        self.reference = Some(self.own_reference());
        self.done(task)
    }

    /// Finds a free slot; what to say or look up for it is the error.
    fn slot(&mut self, request: &Request) -> Result<(), Reply> {
        let Some(day) = self.day else {
            return Err(self.ask(Asked::Day, "Which day would you like to come?"));
        };
        if let Some(doctor) = self.doctor {
            let (doctor, first, last) = DOCTORS[doctor];
            // A Sunday is nobody's day; it is the hours that should refuse it.
            if day <= SATURDAY && !(first..=last).contains(&day) {
                self.day = None;
                let text = format!(
                    "Dr. {doctor} is not in on {}, only from {} to {}. Which day would you like to come?",
                    DAYS[day], DAYS[first], DAYS[last]
                );
                return Err(self.ask(Asked::Day, &text));
            }
        }
        let Some(time) = self.time else {
            return Err(self.ask(Asked::Time, &format!("What time suits you on {}?", DAYS[day])));
        };
        if !is_open(day, time) {
            self.time = None;
            let text = format!(
                "I am sorry, we are closed on {} at {}. {HOURS} What time suits you?",
                DAYS[day],
                clock(time)
            );
            return Err(self.ask(Asked::Time, &text));
        }
        if self.free.is_none() {
            if request.offers(CHECK) {
                let arguments =
                    json!({"day": DAYS[day], "time": clock(time), "doctor": self.doctor_name(day)});
                return Err(Reply::Call {
                    tool: CHECK,
                    arguments,
                });
            }
            self.free = Some(!TAKEN.contains(&(day, time)));
            self.alternatives = (1..8)
                .map(|step| time + 30 * step)
                .filter(|&other| is_open(day, other) && !TAKEN.contains(&(day, other)))
                .take(2)
                .collect();
        }
        if self.free == Some(false) {
            self.time = None;
            self.free = None;
            let offers: Vec<String> = self.alternatives.iter().map(|time| clock(*time)).collect();
            let text = format!("I am sorry, {} at {} is taken. ", DAYS[day], clock(time));
            let text = match offers.as_slice() {
                [] => format!("{text}What other time suits you?"),
                offers => format!("{text}I can offer {}. Which one suits you?", offers.join(" or ")),
            };
            return Err(self.ask(Asked::Time, &text));
        }
        Ok(())
    }

    fn summary(&self, task: Task) -> String {
        let name = self.name.as_deref().unwrap_or_default();
        let birth_date = self.birth_date.as_deref().unwrap_or_default();
        match task {
            Task::Book => {
                format!(
                    "That is {} for {name}, born {birth_date}. Shall I book it?",
                    self.when_with_whom()
                )
            }
            Task::Move => format!(
                "I will move the appointment of {name} to {}. Shall I do that?",
                self.when()
            ),
            Task::Cancel => format!("Shall I cancel the appointment of {name}, born {birth_date}?"),
        }
    }

    fn order(&self, task: Task) -> (&'static str, Value) {
        let day = self.day.map(|day| DAYS[day]);
        let time = self.time.map(clock);
        match task {
            Task::Book => {
                let doctor = self.day.map(|day| self.doctor_name(day));
                let arguments = json!({
                    "day": day, "time": time, "doctor": doctor,
                    "name": self.name, "dateOfBirth": self.birth_date,
                });
                (BOOK, arguments)
            }
            Task::Move => (MOVE, json!({"day": day, "time": time, "name": self.name})),
            Task::Cancel => (CANCEL, json!({"name": self.name, "dateOfBirth": self.birth_date})),
        }
    }

    fn done(&mut self, task: Task) -> Reply {
        let reference = self.reference.take().unwrap_or_default();
        let text = match task {
            Task::Book => format!(
                "Your appointment is booked for {}. Your reference is {reference}. {ANYTHING_ELSE}",
                self.when_with_whom()
            ),
            Task::Move => format!(
                "Your appointment has been moved to {}. {ANYTHING_ELSE}",
                self.when()
            ),
            Task::Cancel => format!("Your appointment has been cancelled. {ANYTHING_ELSE}"),
        };
        *self = Self {
            name: self.name.take(),
            birth_date: self.birth_date.take(),
            ..Self::default()
        };
        self.ask(Asked::AnythingElse, &text)
    }

    fn when(&self) -> String {
        format!(
            "{} at {}",
            self.day.map_or("", |day| DAYS[day]),
            self.time.map(clock).unwrap_or_default()
        )
    }

    fn when_with_whom(&self) -> String {
        format!(
            "{} with {}",
            self.when(),
            self.day.map(|day| self.doctor_name(day)).unwrap_or_default()
        )
    }

    /// The doctor that was asked for, or the first one who is in.
    fn doctor_name(&self, day: usize) -> String {
        let in_that_day = || {
            DOCTORS
                .iter()
                .position(|(_, first, last)| (*first..=*last).contains(&day))
        };
        let (doctor, ..) = DOCTORS[self.doctor.or_else(in_that_day).unwrap_or(0)];
        format!("Dr. {doctor}")
    }

    fn own_reference(&self) -> String {
        let slot = self.day.unwrap_or(0) * 10_000 + usize::from(self.time.unwrap_or(0));
        format!("NC-{:05}", slot + self.name.as_deref().map_or(0, str::len))
    }
}

fn say(text: &str) -> Reply {
    Reply::Say(text.to_owned())
}

/// Whether the clinic is open.
///
/// FAULT: every day but Saturday has the hours of a weekday, Sunday too.
fn is_open(day: usize, time: u16) -> bool {
    let (open, close) = if day == SATURDAY {
        (9 * 60, 12 * 60)
    } else {
        (8 * 60, 18 * 60)
    };
    (open..close).contains(&time)
}

fn clock(time: u16) -> String {
    format!("{}:{:02}", time / 60, time % 60)
}

/// The minute of the day that a text names: `10:30`, `10 am`, `8 pm`, `10 o'clock`, `noon`; where a time was `expected`, a
/// bare hour too.
fn time(words: &str, expected: bool) -> Option<u16> {
    if words.contains("noon") && !words.contains("afternoon") {
        return Some(12 * 60);
    }
    let tokens: Vec<&str> = words
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | '?' | '!'))
        .map(|token| token.trim_matches('.'))
        .filter(|token| !token.is_empty())
        .collect();
    tokens.iter().enumerate().find_map(|(index, token)| {
        let digits = token.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let suffix = &token[digits.len()..];
        let suffix = if suffix.is_empty() {
            tokens.get(index + 1).copied().unwrap_or_default()
        } else {
            suffix
        };
        let (hour, minute) = digits.split_once(':').unwrap_or((digits, "0"));
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        let hour = match suffix {
            "pm" | "p.m" if hour < 12 => hour + 12,
            "am" | "a.m" | "pm" | "p.m" | "o'clock" => hour,
            _ if digits.contains(':') || expected => hour,
            _ => return None,
        };
        (hour < 24 && minute < 60).then_some(hour * 60 + minute)
    })
}

/// A name without the words around it.
fn name(text: &str) -> String {
    let text = text.trim().trim_end_matches(['.', '!']);
    let lower = text.to_lowercase();
    for opening in ["my name is ", "this is ", "it is ", "it's ", "i am ", "i'm "] {
        if let Some(at) = lower.find(opening)
            && let Some(rest) = text.get(at + opening.len()..)
        {
            return rest.trim().to_owned();
        }
    }
    text.to_owned()
}

/// A date without the words before it.
fn birth_date(text: &str) -> String {
    let text = text.trim().trim_end_matches(['.', '!']);
    let lower = text.to_lowercase();
    match lower.find(" is ").or_else(|| lower.find(" on ")) {
        Some(at) => text.get(at + 4..).unwrap_or(text).trim().to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a conversation: what the caller says, and what the tools answer.
    struct Call {
        messages: Vec<Value>,
        tools: Value,
    }

    impl Call {
        fn new(tools: Value) -> Self {
            Self {
                messages: vec![json!({"role": "system", "content": "You are the front desk."})],
                tools,
            }
        }

        fn reply(&self) -> Reply {
            let request = json!({"messages": self.messages, "tools": self.tools});
            reply(&serde_json::from_value(request).unwrap())
        }

        /// The agent's words after the caller's.
        fn say(&mut self, words: &str) -> String {
            self.messages.push(json!({"role": "user", "content": words}));
            match self.reply() {
                Reply::Say(text) => {
                    self.messages.push(json!({"role": "assistant", "content": text}));
                    text
                }
                call @ Reply::Call { .. } => panic!("{call:?} after {words:?}"),
            }
        }

        fn run(&mut self, lines: &[&str]) -> String {
            lines.iter().map(|line| self.say(line)).last().unwrap()
        }

        /// The caller's words lead to this call, which is answered so.
        fn call(&mut self, words: Option<&str>, tool: &str, result: Value) -> Reply {
            if let Some(words) = words {
                self.messages.push(json!({"role": "user", "content": words}));
            }
            match self.reply() {
                Reply::Call { tool: called, .. } => assert_eq!(called, tool),
                Reply::Say(text) => panic!("said {text:?} instead of calling {tool}"),
            }
            let id = format!("call_{}", self.messages.len());
            self.messages
                .push(json!({"role": "assistant", "content": null, "tool_calls":
                [{"id": id, "type": "function", "function": {"name": tool, "arguments": "{}"}}]}));
            self.messages
                .push(json!({"role": "tool", "tool_call_id": id, "content": result.to_string()}));
            let reply = self.reply();
            if let Reply::Say(text) = &reply {
                self.messages.push(json!({"role": "assistant", "content": text}));
            }
            reply
        }
    }

    fn no_tools() -> Call {
        Call::new(json!([]))
    }

    #[test]
    fn books_with_everything_it_needs() {
        let mut call = no_tools();
        assert_eq!(call.reply(), say(GREETING));
        assert!(
            call.say("Hello, I would like to book an appointment.")
                .contains("Which day")
        );
        assert!(call.say("Wednesday, please.").contains("What time"));
        assert!(call.say("At 10 o'clock.").contains("full name"));
        assert!(call.say("My name is Jane Miller.").contains("date of birth"));
        let summary = call.say("It is 4 May 1990.");
        assert_eq!(
            summary,
            "That is Wednesday at 10:00 with Dr. Reed for Jane Miller, born 4 May 1990. Shall I book it?"
        );
        assert!(
            call.say("Yes, please.")
                .starts_with("Your appointment is booked for Wednesday at 10:00 with Dr. Reed.")
        );
        assert_eq!(call.say("That is all, goodbye."), GOODBYE);
    }

    #[test]
    fn a_taken_slot_is_not_booked_and_an_offered_one_is() {
        let mut call = no_tools();
        let offer = call.run(&["I want to book an appointment on Tuesday at 10:00."]);
        assert!(
            offer.contains("is taken") && offer.contains("11:00 or 11:30"),
            "{offer}"
        );
        assert!(call.say("11:00 is fine.").contains("full name"));
    }

    #[test]
    fn the_tools_decide_where_there_are_tools() {
        let mut call = Call::new(tools());
        let taken = json!({"available": false, "alternatives": ["14:30", "15:00"]});
        let Reply::Say(offer) = call.call(Some("Book me an appointment on Thursday at 9 am."), CHECK, taken)
        else {
            panic!("expected words");
        };
        assert!(offer.contains("14:30 or 15:00"), "{offer}");
        assert!(call.say("15:00 please").contains("full name"));
        call.run(&["Max Power", "1 January 1980"]);
        let booked = call.call(Some("Yes."), BOOK, json!({"reference": "NC-4711"}));
        let Reply::Say(booked) = booked else {
            panic!("expected words")
        };
        assert!(
            booked.contains("booked for Thursday at 15:00 with Dr. Okafor"),
            "{booked}"
        );
        assert!(booked.contains("NC-4711"));
    }

    #[test]
    fn outside_the_hours_it_refuses_but_not_on_sunday_which_is_the_first_fault() {
        let mut call = no_tools();
        assert!(
            call.run(&["Book an appointment on Monday at 8 pm."])
                .contains("we are closed on Monday at 20:00")
        );
        let mut call = no_tools();
        assert!(
            call.run(&["Book an appointment on Saturday at 14:00."])
                .contains("closed on Saturday")
        );
        let mut call = no_tools();
        let lines = [
            "Book an appointment on Sunday at 10:00.",
            "Jane Miller",
            "4 May 1990",
            "Yes",
        ];
        assert!(call.run(&lines).contains("booked for Sunday at 10:00"));
    }

    #[test]
    fn cancelling_asks_for_the_date_of_birth_and_moving_does_not_which_is_the_second_fault() {
        let mut call = no_tools();
        assert!(
            call.run(&["I have to cancel my appointment.", "Jane Miller"])
                .contains("date of birth")
        );
        assert!(call.run(&["4 May 1990", "Yes."]).contains("has been cancelled"));
        let mut call = no_tools();
        let lines = [
            "I need to reschedule my appointment.",
            "Friday",
            "9:30",
            "This is Jane Miller.",
        ];
        assert_eq!(
            call.run(&lines),
            "I will move the appointment of Jane Miller to Friday at 9:30. Shall I do that?"
        );
        assert!(call.say("Yes").contains("has been moved to Friday at 9:30"));
    }

    #[test]
    fn a_correction_before_the_booking_is_heard() {
        let mut call = no_tools();
        let lines = [
            "Book an appointment on Thursday at 11 am.",
            "Jane Miller",
            "4 May 1990",
        ];
        assert!(call.run(&lines).contains("Thursday at 11:00"));
        assert!(call.say("No, make it Friday.").contains("Friday at 11:00"));
        assert!(call.say("Yes.").contains("booked for Friday at 11:00"));
    }

    #[test]
    fn questions_are_answered_also_in_between() {
        let mut call = no_tools();
        assert!(
            call.say("How much is a check-up?")
                .starts_with("A check-up costs $80.")
        );
        assert!(
            call.say("And what are your opening hours?")
                .contains("On Sunday we are closed")
        );
        let asked = call.run(&[
            "I would like to book an appointment.",
            "How much does a blood test cost?",
        ]);
        assert_eq!(asked, "A blood test costs $45. Which day would you like to come?");
        let refused = call.say("Monday with Dr. Okafor.");
        assert!(refused.contains("Dr. Okafor is not in on Monday"), "{refused}");
        assert_eq!(call.say("I have chest pain and it is getting worse."), EMERGENCY);
    }

    #[test]
    fn times_are_read_as_people_say_them() {
        for (words, expected) in [
            ("at 10:30", 630),
            ("10 am please", 600),
            ("8pm.", 1200),
            ("12 pm", 720),
            ("around noon", 720),
            ("9 o'clock", 540),
        ] {
            assert_eq!(time(words, false), Some(expected), "{words}");
        }
        for words in ["in the afternoon", "25:00", "10:75", "4 May 1990", "é10", ""] {
            assert_eq!(time(words, false), None, "{words}");
        }
        assert_eq!(time("11", true), Some(660));
    }
}
