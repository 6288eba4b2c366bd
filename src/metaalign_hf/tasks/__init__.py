"""Everything that one task knows: image classification, object detection."""
