//! Checks on input that go beyond its types. A fault is one sentence that begins with the path of the field at fault.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// What is wrong with an input: one sentence per fault, each beginning with the field's path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Invalid(pub Vec<String>);

/// An input that can name what is wrong with it.
pub trait Validate {
    /// Adds a sentence to `faults` for everything that is wrong. `path` is the path of this value, empty at the root.
    fn validate(&self, path: &str, faults: &mut Vec<String>);
}

impl<T: Validate> Validate for Vec<T> {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        for (index, item) in self.iter().enumerate() {
            item.validate(&check::join(path, &index.to_string()), faults);
        }
    }
}

impl<T: Validate> Validate for Option<T> {
    fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(value) = self {
            value.validate(path, faults);
        }
    }
}

/// Reads `value` as a `T` and checks it.
///
/// # Errors
/// Everything that is wrong with it, each fault with its path.
pub fn parse<T: DeserializeOwned + Validate>(value: Value) -> Result<T, Invalid> {
    let parsed: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner().to_string();
        Invalid(vec![if path == "." || path == "?" {
            inner
        } else {
            format!("{path}: {inner}")
        }])
    })?;
    let mut faults = Vec::new();
    parsed.validate("", &mut faults);
    if faults.is_empty() {
        Ok(parsed)
    } else {
        Err(Invalid(faults))
    }
}

/// The checks that models share.
pub mod check {
    /// The longest folder path, in characters.
    pub const FOLDER_PATH: usize = 255;
    /// What [`folder_path`] takes, as a regular expression.
    pub const FOLDER_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,2}$";

    /// The path of `field` under `path`.
    #[must_use]
    pub fn join(path: &str, field: &str) -> String {
        if path.is_empty() {
            field.to_owned()
        } else {
            format!("{path}.{field}")
        }
    }

    /// A text's length in characters must be within `min..=max`.
    pub fn length(path: &str, field: &str, text: &str, min: usize, max: usize, faults: &mut Vec<String>) {
        let length = text.chars().count();
        if length < min || length > max {
            let path = join(path, field);
            faults.push(if min == 0 {
                format!("{path} must be shorter than or equal to {max} characters")
            } else {
                format!("{path} must be between {min} and {max} characters")
            });
        }
    }

    /// A number must be within `min..=max`.
    pub fn range(path: &str, field: &str, value: f64, min: f64, max: f64, faults: &mut Vec<String>) {
        if !(min..=max).contains(&value) {
            faults.push(format!("{} must be between {min} and {max}", join(path, field)));
        }
    }

    /// A folder path: one to three segments of letters, digits, `.`, `_` and `-`, each beginning with a letter or digit.
    pub fn folder_path(path: &str, field: &str, text: &str, faults: &mut Vec<String>) {
        length(path, field, text, 0, FOLDER_PATH, faults);
        let segment = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric())
                && s.chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if text.split('/').count() > 3 || !text.split('/').all(segment) {
            faults.push(format!(
                "{} must be one to three segments of letters, digits, '.', '_' or '-', separated by '/'",
                join(path, field)
            ));
        }
    }

    /// An id must be a UUID.
    pub fn uuid(path: &str, field: &str, text: &str, faults: &mut Vec<String>) {
        if uuid::Uuid::try_parse(text).is_err() {
            faults.push(format!("{} must be a UUID", join(path, field)));
        }
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::check;

    #[test]
    fn folder_paths_follow_the_published_pattern() {
        let fault = |text: &str| {
            let mut faults = Vec::new();
            check::folder_path("", "path", text, &mut faults);
            !faults.is_empty()
        };
        let pattern = Regex::new(check::FOLDER_PATTERN).unwrap();
        for good in ["a", "dept/feature/variant", "A.b_c-d/9"] {
            assert!(!fault(good) && pattern.is_match(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a/b/c/d", ".a", "a b", &"x".repeat(256)] {
            assert!(fault(bad), "{bad}");
            assert!(!pattern.is_match(bad) || bad.len() > check::FOLDER_PATH, "{bad}");
        }
    }
}
