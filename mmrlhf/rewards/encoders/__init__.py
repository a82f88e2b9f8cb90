"""Image and text towers as functions of tensors: CLIP, SigLIP, open_clip, and what is kept of them."""
