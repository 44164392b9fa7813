// SPDX-License-Identifier: GPL-2.0

//! Messages on their way from softirq to process context.

use kernel::prelude::*;

use crate::sync::{new_irq_lock, IrqLock};

/// An item with its place in an [`Inbox`]. Allocated and freed outside of the lock, which does not allow either.
pub(crate) struct Node<T> {
    item: T,
    next: Option<KBox<Node<T>>>,
}

impl<T> Node<T> {
    /// Any context but hard interrupts.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(item: T) -> Result<KBox<Self>> {
        Ok(KBox::new(Self { item, next: None }, GFP_ATOMIC)?)
    }
}

/// Items in the order in which they came.
#[pin_data]
pub(crate) struct Inbox<T> {
    /// The latest first.
    #[pin]
    latest: IrqLock<Option<KBox<Node<T>>>>,
}

impl<T: Send> Inbox<T> {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            latest <- new_irq_lock!(None, c"hv_vmbus_rs::Inbox"),
        })
    }

    /// Adds an item. Any context but NMI.
    pub(crate) fn push(&self, mut node: KBox<Node<T>>) {
        let mut latest = self.latest.lock();
        node.next = latest.take();
        *latest = Some(node);
    }

    /// Takes everything out.
    pub(crate) fn take(&self) -> Batch<T> {
        let mut from = self.latest.lock().take();
        let mut first = None;
        while let Some(mut node) = from {
            from = core::mem::replace(&mut node.next, first);
            first = Some(node);
        }
        Batch { first }
    }
}

/// Items taken out of an [`Inbox`], the oldest first.
pub(crate) struct Batch<T> {
    first: Option<KBox<Node<T>>>,
}

impl<T> Batch<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

impl<T> Iterator for Batch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let Node { item, next } = KBox::into_inner(self.first.take()?);
        self.first = next;
        Some(item)
    }
}
