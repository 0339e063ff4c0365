//! The form of all JSON that commands print, made from its types.
//! Never holds a value.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::examination::Examination;
use super::explanation::Explained;
use super::failure::ErrorStatus;
use super::news::News;
use super::own::OwnStatus;
use super::remains::Remains;
use super::report::Report;
use super::status::{AuditStatus, Status};

/// What a command of firewall-agent prints with --json.
// Only its form is of use.
#[allow(dead_code)]
#[derive(JsonSchema)]
#[schemars(untagged, title = "firewall-agent --json")]
enum Document {
    /// `status` and `show`, if an agent runs.
    Status(Box<Status>),
    /// `status` and `show`, if none does.
    Remains(Remains),
    /// `explain`.
    Explained(Vec<Explained>),
    /// `check`.
    Report(Report),
    /// `doctor`.
    Examination(Examination),
    /// `audit`.
    Audit(AuditStatus),
    /// A line of `monitor`.
    News(News),
    /// The service `firewall.Why`.
    Own(OwnStatus),
    /// Any of them, if there is no answer.
    Error(ErrorStatus),
}

/// JSON Schema (draft 2020-12) of whatever a command may print.
pub fn schema() -> Schema {
    // What is told always has all its fields, those that may be absent in a question too.
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<Document>()
}
