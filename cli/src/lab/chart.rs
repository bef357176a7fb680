//! Line charts as SVG and PNG.
//!
//! Lines are told apart by colour (the set of Okabe and Ito, which colour-blind people tell apart), by marker, and by a name
//! at their end. Letters come from a font in the binary: a machine without fonts draws the same.

use std::{fmt::Display, ops::Range, path::Path, sync::Once};

use anyhow::{Result, anyhow};
use plotters::{
    backend::{BitMapBackend, DrawingBackend, SVGBackend},
    chart::{ChartBuilder, ChartContext},
    coord::{Shift, types::RangedCoordf64},
    drawing::{DrawingArea, IntoDrawingArea},
    element::{Circle, Cross, PathElement, Text, TriangleMarker},
    prelude::Cartesian2d,
    series::{DashedLineSeries, LineSeries},
    style::{
        BLACK, Color, FontStyle, IntoTextStyle, RGBColor, TextStyle, WHITE, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

const SIZE: (i32, i32) = (960, 600);
/// Pixels of a PNG for each unit: screens show it at half its size.
const PNG_SCALE: i32 = 2;
/// For the names at the ends of the lines.
const NAMES_WIDTH: i32 = 190;
const NAME_HEIGHT: i32 = 21;
const FONT: &str = "sans-serif";
const TEXT_SIZE: i32 = 15;
const TITLE_SIZE: i32 = 20;
const GRAY: RGBColor = RGBColor(90, 90, 90);
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// What is drawn. Values on an axis of powers are above 0.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    /// A second, smaller line: what was measured, and with what.
    pub subtitle: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub struct Axis {
    /// With its unit.
    pub name: String,
    pub scale: Scale,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// From 0.
    Even,
    /// Powers of two are as far from each other.
    Powers,
}

#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// What was not measured is dashed and has no markers.
    pub is_measured: bool,
}

impl Line {
    pub fn measured(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            is_measured: true,
        }
    }

    pub fn computed(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            is_measured: false,
            ..Self::measured(name, points)
        }
    }
}

impl Scale {
    /// Where a value lies on an even axis.
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Even => value,
            Self::Powers => value.log2(),
        }
    }

    fn range(self, values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
        let places = values.map(|value| self.place(value));
        let max = places.clone().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::Even => 0.0..(max * 1.05).max(f64::MIN_POSITIVE),
            Self::Powers => {
                let min = places.fold(f64::INFINITY, f64::min).floor();
                min..(max.ceil()).max(min + 1.0)
            }
        }
    }

    /// At most so many, at round numbers.
    fn num_labels(self, range: &Range<f64>) -> usize {
        match self {
            // Of small counts, whole ones.
            Self::Even if (4.0..9.0).contains(&range.end) => range.end as usize + 1,
            Self::Even => 9,
            Self::Powers => (range.end - range.start) as usize + 1,
        }
    }

    fn label(self, place: f64) -> String {
        match self {
            Self::Even => number(place),
            Self::Powers if (place - place.round()).abs() < 1e-6 => number(place.round().exp2()),
            Self::Powers => String::new(),
        }
    }
}

/// Short, and exact for what stands at ticks.
fn number(value: f64) -> String {
    match value {
        _ if value >= 100.0 || value == value.round() => format!("{value:.0}"),
        _ if value >= 1.0 => format!("{value:.1}"),
        _ => {
            let text = format!("{value:.6}");
            text.trim_end_matches('0').to_owned()
        }
    }
}

impl Chart {
    /// `STEM.svg` and `STEM.png`. Errors if a file cannot be written, or there is nothing to draw.
    pub fn write(&self, folder: &Path, stem: &str) -> Result<()> {
        static FONT_REGISTERED: Once = Once::new();
        FONT_REGISTERED.call_once(|| {
            let registered = register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR);
            debug_assert!(registered.is_ok(), "the font in the binary is one");
        });
        let (svg, png) = (folder.join(format!("{stem}.svg")), folder.join(format!("{stem}.png")));
        let size = |scale: i32| ((SIZE.0 * scale) as u32, (SIZE.1 * scale) as u32);
        self.draw(SVGBackend::new(&svg, size(1)).into_drawing_area(), Units(1))
            .map_err(|error| anyhow!("cannot draw {}: {error}", svg.display()))?;
        let area = BitMapBackend::new(&png, size(PNG_SCALE)).into_drawing_area();
        self.draw(area, Units(PNG_SCALE))
            .map_err(|error| anyhow!("cannot draw {}: {error}", png.display()))
    }

    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>, units: Units) -> Result<(), String> {
        let points = self.lines.iter().flat_map(|line| &line.points);
        if points.clone().next().is_none() {
            return Err("there is nothing to show".to_owned());
        }
        let x = self.x.scale.range(points.clone().map(|point| point.0));
        let y = self.y.scale.range(points.map(|point| point.1));
        area.fill(&WHITE).map_err(text)?;
        self.draw_titles(&area, units)?;
        let mut chart = ChartBuilder::on(&area)
            .margin_top(units.of(TITLE_SIZE + TEXT_SIZE + 28))
            .margin_bottom(units.of(12))
            .margin_left(units.of(12))
            .margin_right(units.of(NAMES_WIDTH))
            .x_label_area_size(units.of(52))
            .y_label_area_size(units.of(84))
            .build_cartesian_2d(x.clone(), y.clone())
            .map_err(text)?;
        chart
            .configure_mesh()
            .x_labels(self.x.scale.num_labels(&x))
            .y_labels(self.y.scale.num_labels(&y))
            .x_label_formatter(&|place| self.x.scale.label(*place))
            .y_label_formatter(&|place| self.y.scale.label(*place))
            .x_desc(&self.x.name)
            .y_desc(&self.y.name)
            .label_style(units.letters(TEXT_SIZE, &BLACK))
            .axis_desc_style(units.letters(TEXT_SIZE, &BLACK))
            .axis_style(BLACK.stroke_width(units.of(1) as u32))
            .light_line_style(WHITE.mix(0.0))
            .bold_line_style(BLACK.mix(0.13).stroke_width(units.of(1) as u32))
            .set_all_tick_mark_size(units.of(5))
            .draw()
            .map_err(text)?;
        let mut ends = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            let places: Vec<(f64, f64)> = line.points.iter().map(|point| self.place(*point)).collect();
            units.draw_line(&mut chart, line, index, &places).map_err(text)?;
            if let Some(last) = places.last() {
                ends.push(End {
                    at: chart.backend_coord(last),
                    index,
                });
            }
        }
        self.draw_names(&area, ends, units)?;
        area.present().map_err(text)
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.scale.place(x), self.y.scale.place(y))
    }

    fn draw_titles<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, units: Units) -> Result<(), String> {
        let at = |down| (units.of(16), units.of(down));
        let title = Text::new(self.title.clone(), at(12), units.letters(TITLE_SIZE, &BLACK));
        let small = units.letters(TEXT_SIZE - 2, &GRAY);
        let subtitle = Text::new(self.subtitle.clone(), at(18 + TITLE_SIZE), small);
        area.draw(&title).map_err(text)?;
        area.draw(&subtitle).map_err(text)
    }

    /// Beside the ends of the lines, none over another.
    fn draw_names<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        mut ends: Vec<End>,
        units: Units,
    ) -> Result<(), String> {
        ends.sort_by_key(|end| end.at.1);
        let wanted: Vec<i32> = ends.iter().map(|end| end.at.1).collect();
        let heights = apart(&wanted, units.of(NAME_HEIGHT), units.of(SIZE.1 - 70));
        let left = units.of(SIZE.0 - NAMES_WIDTH + 12);
        for (end, height) in ends.iter().zip(heights) {
            let color = COLORS[end.index % COLORS.len()];
            let lead = vec![(end.at.0 + units.of(7), end.at.1), (left - units.of(2), height)];
            area.draw(&PathElement::new(lead, color.mix(0.5))).map_err(text)?;
            let style = units.letters(TEXT_SIZE, &color).pos(Pos::new(HPos::Left, VPos::Center));
            let name = self.lines[end.index].name.clone();
            area.draw(&Text::new(name, (left + units.of(2), height), style))
                .map_err(text)?;
        }
        Ok(())
    }
}

/// Pixels for each unit of length.
#[derive(Clone, Copy)]
struct Units(i32);

impl Units {
    fn of(self, length: i32) -> i32 {
        self.0 * length
    }

    fn letters(self, size: i32, color: &RGBColor) -> TextStyle<'_> {
        // Sizes in pixels do not ask how large the picture is.
        (FONT, self.of(size)).into_text_style(&(0, 0)).color(color)
    }

    fn draw_line<B: DrawingBackend>(
        self,
        chart: &mut ChartContext<'_, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
        line: &Line,
        index: usize,
        places: &[(f64, f64)],
    ) -> Result<(), impl Display + use<B>> {
        let color = COLORS[index % COLORS.len()];
        let style = color.stroke_width(self.of(2) as u32);
        if !line.is_measured {
            let dashed = DashedLineSeries::new(places.iter().copied(), self.of(7), self.of(5), style);
            return chart.draw_series(dashed).map(drop);
        }
        chart.draw_series(LineSeries::new(places.iter().copied(), style))?;
        for place in places.iter().copied() {
            let drawn = match index % 4 {
                0 => chart
                    .draw_series([Circle::new(place, self.of(4), color.filled())])
                    .map(drop),
                1 => chart
                    .draw_series([TriangleMarker::new(place, self.of(6), color.filled())])
                    .map(drop),
                2 => chart.draw_series([Cross::new(place, self.of(5), style)]).map(drop),
                _ => chart.draw_series([Circle::new(place, self.of(5), style)]).map(drop),
            };
            drawn?;
        }
        Ok(())
    }
}

/// Where a line ends, in pixels.
struct End {
    at: (i32, i32),
    index: usize,
}

/// Heights of names near the wanted ones, which are in order: moved down where they would touch, and up at the bottom.
fn apart(wanted: &[i32], distance: i32, bottom: i32) -> Vec<i32> {
    let mut heights = wanted.to_vec();
    for at in 1..heights.len() {
        heights[at] = heights[at].max(heights[at - 1] + distance);
    }
    let mut limit = bottom;
    for height in heights.iter_mut().rev() {
        *height = (*height).min(limit);
        limit = *height - distance;
    }
    heights
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_touch_and_stay_on_the_page() {
        assert_eq!(apart(&[10, 100, 110, 115], 21, 500), [10, 100, 121, 142]);
        assert_eq!(apart(&[480, 490, 500], 21, 500), [458, 479, 500]);
        assert_eq!(apart(&[], 21, 500), [] as [i32; 0]);
    }

    #[test]
    fn axes_begin_at_zero_or_at_a_power_of_two() {
        let values = [3.0, 20.0];
        assert_eq!(Scale::Even.range(values.into_iter()), 0.0..21.0);
        assert_eq!(Scale::Powers.range(values.into_iter()), 1.0..5.0);
        assert_eq!(Scale::Powers.label(3.0), "8");
        assert_eq!(Scale::Powers.label(-2.0), "0.25");
        assert_eq!(Scale::Powers.label(3.5), "");
        assert_eq!(Scale::Even.label(1500.0), "1500");
    }

    #[test]
    fn both_files_say_what_is_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let chart = Chart {
            title: "a title".to_owned(),
            subtitle: "what was measured".to_owned(),
            x: Axis {
                name: "tokens".to_owned(),
                scale: Scale::Powers,
            },
            y: Axis {
                name: "bytes".to_owned(),
                scale: Scale::Even,
            },
            lines: vec![
                Line::measured("one", vec![(256.0, 10.0), (512.0, 20.0)]),
                Line::computed("ideal", vec![(256.0, 5.0), (512.0, 10.0)]),
            ],
        };
        chart.write(folder.path(), "chart").unwrap();
        let svg = std::fs::read_to_string(folder.path().join("chart.svg")).unwrap();
        for word in [
            "a title",
            "what was measured",
            "tokens",
            "bytes",
            "one",
            "ideal",
            "256",
            "512",
        ] {
            assert!(svg.contains(word), "{word}");
        }
        let png = std::fs::read(folder.path().join("chart.png")).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5000);
        let empty = Chart {
            lines: Vec::new(),
            ..chart
        };
        assert!(empty.write(folder.path(), "empty").is_err());
    }
}
