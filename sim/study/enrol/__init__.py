"""The study of enrolment: what a person who took no part in training gains from 1 to 40 sentences, by method.

Loads without Flower and Ray, so that it runs where only torch is.
"""
