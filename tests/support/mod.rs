//! Starts nodes and devices for the stories.
