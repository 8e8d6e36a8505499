//! Bodies that work as they stand, for readers and for programs that try the API out.

pub(crate) const ASSISTANT: &str = r#"{
  "name": "Clinic",
  "model": {
    "provider": "custom-llm", "model": "my-agent", "url": "https://agent.example.com/v1",
    "messages": [{"role": "system", "content": "You take bookings for a clinic."}]
  }
}"#;

pub(crate) const SQUAD: &str = r#"{
  "name": "Front desk",
  "members": [
    {
      "assistant": {"name": "Reception", "model": {"provider": "openai", "model": "gpt-4.1"}},
      "assistantDestinations": [{"type": "assistant", "assistantName": "Billing", "description": "Bills and payments"}]
    },
    {"assistant": {"name": "Billing", "model": {"provider": "openai", "model": "gpt-4.1"}}}
  ]
}"#;

pub(crate) const STRUCTURED_OUTPUT: &str = r#"{
  "name": "booked", "description": "Whether an appointment was booked", "schema": {"type": "boolean"}
}"#;

pub(crate) const EVAL: &str = r#"{
  "name": "Books what was asked for",
  "type": "chat.mockConversation",
  "messages": [
    {"role": "user", "content": "I need an appointment tomorrow at two in the afternoon."},
    {"role": "assistant", "judgePlan": {"type": "exact", "toolCalls": [{"name": "book", "arguments": {"time": "14:00"}}]}},
    {"role": "tool", "content": "{\"booked\": true}"},
    {"role": "assistant", "judgePlan": {"type": "regex", "content": "/booked|confirmed/i"}}
  ]
}"#;

pub(crate) const EVAL_RUN: &str = r#"{
  "type": "eval",
  "eval": {
    "type": "chat.mockConversation",
    "messages": [
      {"role": "user", "content": "Hello"},
      {"role": "assistant", "judgePlan": {"type": "regex", "content": "/hello|hi/i"}}
    ]
  },
  "target": {
    "type": "assistant",
    "assistant": {"model": {"provider": "custom-llm", "model": "my-agent", "url": "https://agent.example.com/v1",
      "messages": [{"role": "system", "content": "You take bookings for a clinic."}]}}
  }
}"#;

pub(crate) const PERSONALITY: &str = r#"{
  "name": "In a hurry",
  "assistant": {"model": {"provider": "openai", "model": "gpt-4.1",
    "messages": [{"role": "system", "content": "You are in a hurry and speak in short sentences."}]}}
}"#;

pub(crate) const SCENARIO: &str = r#"{
  "name": "Book an appointment",
  "instructions": "Book an appointment for tomorrow morning.",
  "evaluations": [{
    "structuredOutput": {"name": "booked", "description": "Whether an appointment was booked", "schema": {"type": "boolean"}},
    "comparator": "=", "value": true
  }],
  "toolMocks": [{"toolName": "findSlot", "result": "Nine o'clock is free."}],
  "path": "clinic/booking"
}"#;

/// With a personality that is built in; the scenario's id is one of the organization's own.
pub(crate) const SIMULATION: &str = r#"{
  "name": "Booking, impatiently",
  "scenarioId": "0193e6a4-0000-7000-8000-000000000000",
  "personalityId": "a0000000-0000-4000-8000-000000000004"
}"#;

pub(crate) const SUITE: &str = r#"{"name": "Every night", "simulationIds": []}"#;

pub(crate) const RUN: &str = r#"{
  "simulations": [{
    "type": "simulation",
    "scenario": {
      "name": "Book an appointment",
      "instructions": "Book an appointment for tomorrow morning.",
      "evaluations": [{
        "structuredOutput": {"name": "booked", "description": "Whether an appointment was booked", "schema": {"type": "boolean"}},
        "comparator": "=", "value": true
      }]
    },
    "personalityId": "a0000000-0000-4000-8000-000000000004"
  }],
  "target": {
    "type": "assistant",
    "assistant": {"model": {"provider": "custom-llm", "model": "my-agent", "url": "https://agent.example.com/v1",
      "messages": [{"role": "system", "content": "You take bookings for a clinic."}]}}
  },
  "iterations": 3,
  "transport": {"provider": "vapi.webchat"}
}"#;

pub(crate) const ENDPOINT: &str = r#"{"name": "Bridge", "url": "https://calls.example.com/v1"}"#;

pub(crate) const SCHEDULE: &str = r#"{
  "name": "Nightly",
  "cron": "0 2 * * MON-FRI",
  "timezone": "Europe/Berlin",
  "simulations": [{
    "type": "simulation",
    "scenario": {
      "name": "Book an appointment",
      "instructions": "Book an appointment for tomorrow morning.",
      "evaluations": [{
        "structuredOutput": {"name": "booked", "description": "Whether an appointment was booked", "schema": {"type": "boolean"}},
        "comparator": "=", "value": true
      }]
    },
    "personalityId": "a0000000-0000-4000-8000-000000000004"
  }],
  "target": {
    "type": "assistant",
    "assistant": {"model": {"provider": "custom-llm", "model": "my-agent", "url": "https://agent.example.com/v1",
      "messages": [{"role": "system", "content": "You take bookings for a clinic."}]}}
  },
  "iterations": 3,
  "transport": {"provider": "vapi.webchat"},
  "notify": {"on": "failure", "slackWebhookUrl": "https://hooks.slack.com/services/T0/B0/x"}
}"#;
