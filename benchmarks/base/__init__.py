"""The base model: trained, calibrated, and measured on data that it has not seen."""
