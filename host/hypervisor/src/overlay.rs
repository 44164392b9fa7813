// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Overlay pages (TLFS, "GPA Overlay Pages"): a page of the hypervisor that hides a page of guest
//! RAM.
//!
//! The host has one copy of RAM only, so the hidden page is kept aside and put back when the
//! overlay goes, and the overlay's own content survives being moved or disabled.

use hv_partition::{GuestRam, RamError};

use crate::PAGE_SIZE;

type Page = Box<[u8; PAGE_SIZE]>;

/// One overlay page. Content starts as zeros.
#[derive(Default)]
pub(crate) struct Overlay {
    /// Where it lies now, and what it hides.
    placed: Option<(u64, Page)>,
    /// Content while it lies nowhere; `None`: zeros.
    content: Option<Page>,
}

impl Overlay {
    /// Guest-physical address of the page, when enabled.
    pub(crate) fn gpa(&self) -> Option<u64> {
        self.placed.as_ref().map(|(gpa, _)| *gpa)
    }

    /// Lets the page lie at `gpa` (page-aligned), or nowhere.
    ///
    /// # Errors
    /// The new place is not RAM; nothing has changed.
    pub(crate) fn place(&mut self, ram: &GuestRam, gpa: Option<u64>) -> Result<(), RamError> {
        if self.gpa() == gpa {
            return Ok(());
        }
        if let Some(gpa) = gpa {
            if !ram.is_ram(gpa, PAGE_SIZE) {
                return Err(RamError::NotRam(gpa, PAGE_SIZE));
            }
        }
        if let Some((old, hidden)) = self.placed.take() {
            let mut content = Box::new([0; PAGE_SIZE]);
            ram.read(old, &mut content[..])?;
            ram.write(old, &hidden[..])?;
            self.content = Some(content);
        }
        if let Some(gpa) = gpa {
            let mut hidden = Box::new([0; PAGE_SIZE]);
            ram.read(gpa, &mut hidden[..])?;
            match self.content.take() {
                Some(content) => ram.write(gpa, &content[..])?,
                None => ram.write(gpa, &[0; PAGE_SIZE])?,
            }
            self.placed = Some((gpa, hidden));
        }
        Ok(())
    }

    /// Forgets page and content without touching RAM: for a reset, after which RAM belongs to the
    /// firmware.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(ram: &GuestRam, gpa: u64) -> u8 {
        let mut b = [0];
        ram.read(gpa, &mut b).unwrap();
        b[0]
    }

    #[test]
    fn hides_moves_and_restores() {
        let ram = GuestRam::for_tests(0x4000);
        ram.write(0x1000, &[0xaa; PAGE_SIZE]).unwrap();
        ram.write(0x2000, &[0xbb; PAGE_SIZE]).unwrap();
        let mut overlay = Overlay::default();
        overlay.place(&ram, Some(0x1000)).unwrap();
        assert_eq!(byte(&ram, 0x1800), 0, "content starts as zeros");
        ram.write(0x1800, &[7]).unwrap();
        overlay.place(&ram, Some(0x2000)).unwrap();
        assert_eq!(
            (byte(&ram, 0x1800), byte(&ram, 0x2800)),
            (0xaa, 7),
            "the content moves along"
        );
        overlay.place(&ram, None).unwrap();
        assert_eq!(byte(&ram, 0x2800), 0xbb);
        overlay.place(&ram, Some(0x1000)).unwrap();
        assert_eq!(byte(&ram, 0x1800), 7, "the content survives being disabled");
    }

    #[test]
    fn a_place_outside_ram_changes_nothing() {
        let ram = GuestRam::for_tests(0x2000);
        let mut overlay = Overlay::default();
        overlay.place(&ram, Some(0x1000)).unwrap();
        ram.write(0x1000, &[9]).unwrap();
        assert!(overlay.place(&ram, Some(0x8000_0000)).is_err());
        assert_eq!((overlay.gpa(), byte(&ram, 0x1000)), (Some(0x1000), 9));
    }
}
