//! The pixels of a PNG: plotters' bitmap backend, with letters and dots of its own.
//!
//! plotters sets letters without their side bearings and dots without smooth edges. Here the letters of the font inside
//! the program stand where its tables say, on the same line on which an SVG viewer puts them.
//!
//! resvg would draw the PNG from the SVG, and to the eye the same. It is not used because 30 crates more are built for it,
//! 90 s of processor time in a debug build, and its PNGs of the same figures are 1.8 times as long.

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use anyhow::anyhow;
use plotters::prelude::BitMapBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontStyle,
};

/// plotters' height of a line for letters of size 1.
pub(super) const LINE: f64 = 1.24;

/// Noto Sans, for Latin, Greek and Cyrillic.
const REGULAR: &[u8] = notosans::REGULAR_TTF;
const BOLD: &[u8] = notosans::BOLD_TTF;

type Drawn<'a> = Result<(), DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws on a buffer of red, green and blue bytes.
pub(super) struct Raster<'a> {
    pixels: BitMapBackend<'a>,
    regular: FontRef<'static>,
    bold: FontRef<'static>,
}

impl<'a> Raster<'a> {
    /// `pixels` must hold three bytes for each pixel of `size`.
    ///
    /// # Errors
    /// When the font that the program was built with cannot be read.
    pub(super) fn new(pixels: &'a mut [u8], size: (u32, u32)) -> anyhow::Result<Raster<'a>> {
        let font =
            |bytes| FontRef::try_from_slice(bytes).map_err(|e| anyhow!("the built-in font is broken: {e}"));
        let pixels = BitMapBackend::with_buffer(pixels, size);
        Ok(Raster { pixels, regular: font(REGULAR)?, bold: font(BOLD)? })
    }
}

/// How wide `text` is in letters of `size` pixels.
pub(super) fn width(text: &str, size: f64) -> f64 {
    match FontRef::try_from_slice(REGULAR) {
        Ok(font) => letters(&font, text, size).1.into(),
        Err(_) => 0.6 * size * text.chars().count() as f64,
    }
}

/// The letters of `text` with their places from the left, and where the next one would stand.
fn letters(font: &FontRef<'static>, text: &str, size: f64) -> (Vec<(f32, ab_glyph::GlyphId)>, f32) {
    let font = font.as_scaled(em(font, size));
    let (mut at, mut before) = (0.0, None);
    let mut places = Vec::with_capacity(text.len());
    for letter in text.chars() {
        let id = font.glyph_id(letter);
        if let Some(before) = before {
            at += font.kern(before, id);
        }
        places.push((at, id));
        at += font.h_advance(id);
        before = Some(id);
    }
    (places, at)
}

/// The scale at which the font's em is `size` pixels.
fn em(font: &FontRef<'static>, size: f64) -> PxScale {
    let units = font.units_per_em().unwrap_or(1000.0);
    PxScale::from(size as f32 * font.height_unscaled() / units)
}

impl<'a> DrawingBackend for Raster<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.pixels.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.pixels.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.pixels.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.pixels.draw_pixel(point, color)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn<'a> {
        self.pixels.draw_line(from, to, style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.pixels.draw_rect(upper_left, bottom_right, style, fill)
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        (x, y): BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        let radius = radius as f32;
        let half = style.stroke_width() as f32 / 2.0;
        let reach = (radius + half + 1.0) as i32;
        let color = style.color();
        for dy in -reach..=reach {
            for dx in -reach..=reach {
                let off = (dx as f32).hypot(dy as f32) - radius;
                // How much of the pixel is inside, to half a pixel on both sides of the edge.
                let inside = if fill { 0.5 - off } else { half + 0.5 - off.abs() }.clamp(0.0, 1.0);
                if inside > 0.0 {
                    let alpha = color.alpha * f64::from(inside);
                    self.draw_pixel((x + dx, y + dy), BackendColor { alpha, ..color })?;
                }
            }
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Drawn<'a> {
        let bold = matches!(style.style(), FontStyle::Bold);
        let font = if bold { self.bold.clone() } else { self.regular.clone() };
        let size = style.size() / LINE;
        let scale = em(&font, size);
        let (places, width) = letters(&font, text, size);
        let left = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => -width / 2.0,
            HPos::Right => -width,
        };
        // Where the SVG backend puts the line on which letters stand; capitals are 0.71 high.
        let line = size as f32
            * match style.anchor().v_pos {
                VPos::Top => 0.76,
                VPos::Center => 0.34,
                VPos::Bottom => -0.27,
            };
        let color = style.color();
        let turn = style.transform();
        for (at, id) in places {
            let glyph = id.with_scale_and_position(scale, ab_glyph::point(left + at, line));
            let Some(outline) = font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let mut spots = Vec::new();
            outline.draw(|dx, dy, inside| spots.push((dx as i32, dy as i32, inside)));
            for (dx, dy, inside) in spots {
                let (dx, dy) = turn.transform(corner.x as i32 + dx, corner.y as i32 + dy);
                let alpha = color.alpha * f64::from(inside.clamp(0.0, 1.0));
                self.draw_pixel((x + dx, y + dy), BackendColor { alpha, ..color })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_every_character_that_plots_use_and_measures_it() {
        let font = FontRef::try_from_slice(REGULAR).unwrap();
        let missing: String =
            "0123456789,.-+±×µσ–…abcxyzABC%()/:=".chars().filter(|c| font.glyph_id(*c).0 == 0).collect();
        assert_eq!(missing, "");
        assert!(width("wider", 12.0) > width("wide", 12.0) && width("", 12.0) == 0.0);
        assert!((width("wide", 24.0) / width("wide", 12.0) - 2.0).abs() < 0.01);
    }
}
