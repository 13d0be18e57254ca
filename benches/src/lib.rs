//! Nothing here yet but the place: see CONTRIBUTING.md.
