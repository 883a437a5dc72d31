"""Callbacks for the trainers of other libraries. Nothing else in surefoot imports them."""
