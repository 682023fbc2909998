"""Models: the provider protocol, the normal form of what is asked and answered, prices, and the billing
states.
"""
