//! The model as it was last published, and who is told that there is another one.

use crate::model::Model;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// See the module. Any thread reads it, the engine alone writes.
pub(super) struct Published {
    model: RwLock<Arc<Model>>,
    listener: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Published {
    pub(super) fn new(first: Model) -> Self {
        Self {
            model: RwLock::new(Arc::new(first)),
            listener: OnceLock::new(),
        }
    }

    pub(super) fn current(&self) -> Arc<Model> {
        Arc::clone(&self.model.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when the listener knows: who has an answer from then on sees nothing older.
    pub(super) fn replace(&self, model: Model) {
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(model);
        if let Some(listener) = self.listener.get() {
            listener();
        }
    }

    /// Calls `listener` after each new model, on the engine's thread: it must not wait. There is one, and it stays.
    pub(super) fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.listener.get_or_init(|| Box::new(listener));
    }
}
