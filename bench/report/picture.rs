//! The picture that the page opens with: for each pattern what a page costs with us, beside the floor and the kernel.

use super::plots::Plot;
use super::tables::number;
use crate::case::{Case, Contender, Sample};
use crate::results::{Group, Results};
use crate::svg::{Anchor, Area, Svg, WIDTH};

const LEFT: f64 = 160.0;
/// For the figures behind the bars.
const RIGHT: f64 = 400.0;
const BAR: f64 = 14.0;
const GAP: f64 = 16.0;

/// One bar.
struct Bar {
    name: String,
    class: usize,
    ns: f64,
    /// Against the floor and the kernel; ours only.
    ratios: Vec<(&'static str, f64)>,
}

/// A bar for each pattern and who served it, as long as its time is of the longest of the pattern. `None` if nothing was compared.
pub(crate) fn picture(results: &Results) -> Option<Plot> {
    let mut patterns: Vec<(String, Vec<Bar>)> = Vec::new();
    for group in &results.groups {
        let mut left: Vec<&Case> = group.order.iter().filter(|case| case.threads == 1).collect();
        while let Some(first) = left.first().copied() {
            let key = |case: &Case| (case.work, case.regime, case.pages);
            let (same, others): (Vec<&Case>, Vec<&Case>) = left.into_iter().partition(|case| key(case) == key(first));
            left = others;
            let name = format!("{}, {}", first.work.name(), first.regime.name());
            let bars = bars(group, &same);
            if bars.len() > 1 && !patterns.iter().any(|(known, _)| *known == name) {
                patterns.push((name, bars));
            }
        }
    }
    let title = "A page of each pattern: ours beside the floor and the kernel".to_owned();
    (!patterns.is_empty()).then(|| Plot { svg: draw(&title, &patterns), title })
}

/// The kernel, the floor (the smallest loop or handler that could serve it) and the fastest of ours; none without ours.
fn bars(group: &Group, cases: &[&Case]) -> Vec<Bar> {
    let time = |case: &Case| group.figure(case, |sample: &Sample| Some(sample.ns_per_page)).map(|spread| spread.median);
    let fastest = |is: &dyn Fn(&Contender) -> bool| {
        let timed = cases.iter().filter(|case| is(&case.contender)).filter_map(|case| Some((*case, time(case)?)));
        timed.min_by(|a, b| a.1.total_cmp(&b.1))
    };
    let kernel = fastest(&|contender| matches!(contender, Contender::Kernel));
    let floor = fastest(&|contender| matches!(contender, Contender::BareLoop | Contender::BareHandler));
    let Some((ours, ns)) = fastest(&|contender| matches!(contender, Contender::Dax(_))) else { return Vec::new() };
    let per_page = |sample: &Sample| Some(sample.ns_per_page);
    let against = |name, to: Option<(&Case, f64)>| {
        let ratio = group.ratio((ours, per_page), (to?.0, per_page))?;
        Some((name, ratio.median))
    };
    let ratios = [against("the floor", floor), against("the kernel", kernel)].into_iter().flatten().collect();
    let plain = |(case, ns): (&Case, f64), class| Bar { name: case.contender.name(), class, ns, ratios: Vec::new() };
    let others = [kernel.map(|kernel| plain(kernel, 5)), floor.map(|floor| plain(floor, 1))];
    let ours = Bar { name: ours.contender.name(), class: 0, ns, ratios };
    others.into_iter().flatten().chain([ours]).collect()
}

fn draw(label: &str, patterns: &[(String, Vec<Bar>)]) -> String {
    let mut svg = Svg::default();
    let mut top = GAP;
    for (name, bars) in patterns {
        let longest = bars.iter().map(|bar| bar.ns).fold(f64::MIN_POSITIVE, f64::max);
        svg.text("name", (0.0, top + BAR - 3.0), Anchor::Start, name);
        for bar in bars {
            let width = (bar.ns / longest * (WIDTH - LEFT - RIGHT)).max(1.0);
            let area = Area { x: LEFT, y: top, width, height: BAR - 2.0 };
            svg.rect(&format!("dot s{}", bar.class), area, "");
            svg.text("name", (area.right() + 6.0, top + BAR - 4.0), Anchor::Start, &caption(bar));
            top += BAR;
        }
        top += GAP;
    }
    svg.finish(top, label)
}

/// `daxpager, 1 page: 8,745 ns, 1.05 × the floor, 11.1 × the kernel`
fn caption(bar: &Bar) -> String {
    let ratios = bar.ratios.iter().map(|(to, ratio)| format!(", {ratio:.2} × {to}"));
    format!("{}: {} ns{}", bar.name, number(bar.ns), ratios.collect::<String>())
}
