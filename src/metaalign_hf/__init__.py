"""Unsupervised domain adaptation of Hugging Face vision models with MetaAlign."""
