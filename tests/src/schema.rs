//! docs/schema.json, which every report has to keep.

use std::{fs, sync::LazyLock};

use jsonschema::Validator;
use serde_json::Value;

use crate::binary::workspace;

/// Most differences that are shown.
const SHOWN: usize = 5;

/// The schema, compiled once for all reports of this process.
static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let path = workspace().join("docs/schema.json");
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let schema: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{} is no JSON: {error}", path.display()));
    jsonschema::draft202012::new(&schema)
        .unwrap_or_else(|error| panic!("{} is no schema: {error}", path.display()))
});

/// Panics unless a report is as docs/schema.json says.
///
/// # Panics
///
/// When it is not; the message says where it differs.
pub fn assert_kept(report: &Value) {
    let errors: Vec<String> = SCHEMA
        .iter_errors(report)
        .take(SHOWN)
        .map(|error| format!("{}: {error}", error.instance_path))
        .collect();
    assert!(errors.is_empty(), "not as docs/schema.json says:\n{}", errors.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of docs/json.md.
    fn example() -> Value {
        let text = fs::read_to_string(workspace().join("docs/json.md")).unwrap();
        let line = text.lines().find(|line| line.starts_with("{\"schema\":1,")).unwrap();
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn the_example_keeps_the_schema() {
        assert_kept(&example());
    }

    #[test]
    fn what_breaks_the_schema_is_found() {
        let breaks: [fn(&mut Value); 7] = [
            |report| report["elapsed_ms"] = (-1).into(),
            |report| report["new"] = 1.into(),
            |report| report["sites"][0]["kind"] = "heap".into(),
            |report| report["sites"][0]["truncated"] = false.into(),
            |report| report["sites"][0]["stack"][0]["new"] = 1.into(),
            |report| report["loss"]["complete"] = Value::Null,
            |report| drop(report.as_object_mut().unwrap().remove("totals")),
        ];
        for (index, break_it) in breaks.into_iter().enumerate() {
            let mut report = example();
            break_it(&mut report);
            assert!(!SCHEMA.is_valid(&report), "{index}: {report}");
        }
    }
}
