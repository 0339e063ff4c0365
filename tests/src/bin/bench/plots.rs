//! Pictures of some measurements, as SVG.
//! Never shows what is not in the JSON beside it.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::prelude::*;
use serde_json::Value;

/// A line of a picture.
type Series = (String, Vec<(f64, f64)>);

/// Draws what there is to draw of one kind of measurement.
pub fn draw(name: &str, json: &Value, directory: &Path) -> Result<()> {
    let path = directory.join(format!("{name}.svg"));
    match name {
        "net" => {
            let title = "A new flow through the netvm, by rules";
            lines(&path, title, "rules", "nanoseconds a packet", &new_flows(json))
        }
        "prog" => {
            let title = "The program alone, over the empty program";
            lines(&path, title, "prefixes", "nanoseconds a packet", &prefixes(json))
        }
        "update" => {
            let title = "New rules until they are in force";
            lines(&path, title, "rules", "milliseconds", &updates(json))
        }
        _ => Ok(()),
    }
}

/// Rows of an array.
fn rows(json: &Value) -> impl Iterator<Item = &Value> {
    json.as_array().into_iter().flatten()
}

/// `stock-100` is 100 rules of `stock`.
fn by_rules(rows: impl Iterator<Item = (String, f64)>) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for (firewall, value) in rows {
        let Some((kind, rules)) = firewall.split_once('-') else { continue };
        let Ok(rules) = rules.parse() else { continue };
        match all.iter_mut().find(|(name, _)| name == kind) {
            Some((_, points)) => points.push((rules, value)),
            None => all.push((kind.to_owned(), vec![(rules, value)])),
        }
    }
    all
}

fn of_firewalls(json: &Value, value: &str) -> Vec<(String, f64)> {
    let row = |row: &Value| Some((row["firewall"].as_str()?.to_owned(), row[value].as_f64()?));
    rows(json).filter_map(row).collect()
}

fn new_flows(json: &Value) -> Vec<Series> {
    let new = rows(&json["net"]).find(|kind| kind["traffic"] == "new");
    let all = new.map_or_else(Vec::new, |new| of_firewalls(&new["firewalls"], "median_ns"));
    by_rules(all.into_iter().filter(|(firewall, _)| !firewall.starts_with("rejecting")))
}

fn updates(json: &Value) -> Vec<Series> {
    by_rules(of_firewalls(&json["update"], "tighter_median_ms").into_iter())
}

fn prefixes(json: &Value) -> Vec<Series> {
    let series = |family: &str, destinations: &str| {
        let point = |case: &Value| {
            let name = case["name"].as_str()?.strip_prefix(family)?;
            let prefixes = name.strip_prefix(", ")?.strip_suffix(" prefixes")?.parse().ok()?;
            Some((prefixes, case[destinations]["over_empty_ns"].as_f64()?))
        };
        (format!("{family}, {destinations}"), rows(&json["prog"]).filter_map(point).collect())
    };
    let families = ["IPv4", "IPv6"];
    families.iter().flat_map(|it| [series(it, "same"), series(it, "spread")]).collect()
}

/// Lines over two logarithmic scales.
fn lines(path: &Path, title: &str, x: &str, y: &str, all: &[Series]) -> Result<()> {
    let points = || all.iter().flat_map(|(_, points)| points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let smallest = points().map(of).reduce(f64::min)?;
        let largest = points().map(of).reduce(f64::max)?;
        Some((smallest / 1.3..largest * 1.3).log_scale())
    };
    let (across, up) = (range(|it| it.0), range(|it| it.1));
    let (across, up) = across.zip(up).with_context(|| format!("nothing to draw: {title}"))?;
    let area = SVGBackend::new(path, (760, 440)).into_drawing_area();
    let drawn = || -> Result<(), DrawingAreaErrorKind<_>> {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(across, up)?;
        let whole = |value: &f64| format!("{value:.0}");
        let mesh = &mut chart.configure_mesh();
        mesh.x_label_formatter(&whole).y_label_formatter(&whole);
        mesh.x_desc(x).y_desc(y).light_line_style(TRANSPARENT).draw()?;
        for (number, (name, points)) in all.iter().enumerate() {
            let color = Palette99::pick(number).to_rgba();
            let dots = points.iter().map(|it| Circle::new(*it, 3, color.filled()));
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color);
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
            chart.draw_series(line)?.label(name).legend(legend);
            chart.draw_series(dots)?;
        }
        let position = SeriesLabelPosition::UpperLeft;
        let labels = &mut chart.configure_series_labels();
        labels.position(position).background_style(WHITE).border_style(BLACK).draw()?;
        area.present()
    };
    drawn().map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}
