//! The parameters of lists.

use serde_json::{Value, json};

use crate::{
    lists::{MAX_LIMIT, MAX_PAGE},
    schedules::MAX_POINTS,
};

/// A parameter of a query.
#[derive(Debug)]
pub(crate) struct Parameter {
    name: &'static str,
    shape: Shape,
    about: &'static str,
    required: bool,
}

#[derive(Debug)]
enum Shape {
    /// A whole number within these limits.
    Whole(usize, usize),
    /// One of these words.
    Word(&'static [&'static str]),
    Time,
    Id,
    /// Ids, repeated.
    Ids,
    Text,
}

impl Parameter {
    const fn new(name: &'static str, shape: Shape, about: &'static str) -> Self {
        Self {
            name,
            shape,
            about,
            required: false,
        }
    }

    pub(crate) fn describe(&self) -> Value {
        let schema = match self.shape {
            Shape::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Shape::Word(words) => json!({ "type": "string", "enum": words }),
            Shape::Time => json!({ "type": "string", "format": "date-time" }),
            Shape::Id => json!({ "type": "string", "format": "uuid" }),
            Shape::Ids => json!({ "type": "array", "items": { "type": "string", "format": "uuid" } }),
            Shape::Text => json!({ "type": "string" }),
        };
        let mut parameter =
            json!({ "name": self.name, "in": "query", "description": self.about, "schema": schema });
        if self.required {
            parameter["required"] = json!(true);
        }
        if matches!(self.shape, Shape::Ids) {
            parameter["style"] = json!("form");
            parameter["explode"] = json!(true);
        }
        parameter
    }
}

/// Of every list.
pub(crate) const PAGES: &[Parameter] = &[
    Parameter::new("page", Shape::Whole(1, MAX_PAGE), "Which page, from 1."),
    Parameter::new(
        "limit",
        Shape::Whole(0, MAX_LIMIT),
        "How many entries a page has, 100 unless given.",
    ),
    Parameter::new(
        "cursor",
        Shape::Text,
        "The nextCursor of the page before; it counts more than page.",
    ),
    Parameter::new(
        "sortBy",
        Shape::Word(&["createdAt", "duration", "cost"]),
        "What the list is sorted by; the time of creation unless given.",
    ),
    Parameter::new(
        "sortOrder",
        Shape::Word(&["ASC", "DESC"]),
        "The oldest or the newest first; the newest unless given.",
    ),
    Parameter::new("createdAtGt", Shape::Time, "Created after."),
    Parameter::new("createdAtGe", Shape::Time, "Created at or after."),
    Parameter::new("createdAtLt", Shape::Time, "Created before."),
    Parameter::new("createdAtLe", Shape::Time, "Created at or before."),
];

/// Of lists that are filtered by the time of the last change.
pub(crate) const UPDATED: &[Parameter] = &[
    Parameter::new("updatedAtGt", Shape::Time, "Changed after."),
    Parameter::new("updatedAtGe", Shape::Time, "Changed at or after."),
    Parameter::new("updatedAtLt", Shape::Time, "Changed before."),
    Parameter::new("updatedAtLe", Shape::Time, "Changed at or before."),
];

/// Of lists that are searched.
pub(crate) const NAME: &[Parameter] = &[Parameter::new(
    "name",
    Shape::Text,
    "A part of the name, in upper or lower case.",
)];

/// Of lists from which some are picked.
pub(crate) const IDS: &[Parameter] = &[Parameter::new(
    "idAny",
    Shape::Ids,
    "Only these, repeated or separated by commas.",
)];

/// Of simulations.
pub(crate) const STANDALONE: &[Parameter] = &[Parameter::new(
    "standaloneOnly",
    Shape::Word(&["true", "false"]),
    "Only those that no suite names.",
)];

/// Of runs.
pub(crate) const RUNS: &[Parameter] = &[
    Parameter::new(
        "status",
        Shape::Word(&["queued", "running", "ended"]),
        "Where the run stands.",
    ),
    Parameter::new(
        "filterStatus",
        Shape::Word(&["passed", "failed", "running"]),
        "What it came to.",
    ),
    Parameter::new(
        "targetType",
        Shape::Word(&["assistant", "squad"]),
        "What it tests.",
    ),
    Parameter::new("targetId", Shape::Id, "Which stored target it tests."),
];

/// Of runs of evals.
pub(crate) const EVAL_RUNS: &[Parameter] = &[
    Parameter::new("id", Shape::Id, "Only this run."),
    Parameter::new("evalId", Shape::Id, "Only runs of this stored eval."),
    Parameter::new(
        "search",
        Shape::Text,
        "A part of an eval's name or of the id of a run, eval or target.",
    ),
];

/// Of a run's items.
pub(crate) const ITEMS: &[Parameter] = &[
    Parameter::new(
        "status",
        Shape::Word(&["queued", "running", "evaluating", "passed", "failed", "canceled"]),
        "Where the item stands.",
    ),
    Parameter::new("simulationId", Shape::Id, "The simulation that it plays."),
    Parameter::new("runId", Shape::Id, "The run that it belongs to."),
];

/// Of structured outputs.
pub(crate) const ID: &[Parameter] = &[Parameter::new("id", Shape::Id, "Only this one.")];

/// Of a change of a structured output.
pub(crate) const SCHEMA_OVERRIDE: &[Parameter] = &[Parameter::new(
    "schemaOverride",
    Shape::Text,
    "true to let the schema's type change; anything else keeps it.",
)];

/// Of what has numbered pages only.
pub(crate) const NUMBERED: &[Parameter] = &[
    Parameter::new("page", Shape::Whole(1, MAX_PAGE), "Which page, from 1."),
    Parameter::new(
        "limit",
        Shape::Whole(1, MAX_LIMIT),
        "How many entries a page has; the most unless given.",
    ),
];

/// Of the history of a schedule.
pub(crate) const FIRINGS: &[Parameter] = &[
    Parameter::new(
        "limit",
        Shape::Whole(1, MAX_LIMIT),
        "How many firings to give at most, 100 unless given.",
    ),
    Parameter::new("cursor", Shape::Text, "The nextCursor of the part before."),
    Parameter::new(
        "sortOrder",
        Shape::Word(&["ASC", "DESC"]),
        "The newest first (DESC) unless given.",
    ),
];

/// Of the trend of a schedule.
pub(crate) const TREND: &[Parameter] = &[Parameter::new(
    "limit",
    Shape::Whole(1, MAX_POINTS),
    "Of how many firings with a run, the newest, 30 unless given.",
)];

/// Of a comparison.
pub(crate) const BASELINE: &[Parameter] = &[Parameter {
    required: true,
    ..Parameter::new("baseline", Shape::Id, "The run to compare with.")
}];

/// Of suggestions.
pub(crate) const SUGGESTIONS: &[Parameter] = &[
    Parameter::new(
        "force",
        Shape::Word(&["true", "false"]),
        "Whether to write them anew where there are some.",
    ),
    Parameter::new(
        "persist",
        Shape::Word(&["true", "false"]),
        "Whether to keep them with the item; true unless given.",
    ),
];
